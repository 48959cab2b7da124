"""The registry's tables. Nothing here is particular to one database.

`events` is the record; `registered_models`, `model_versions`, `aliases` and `tags` hold what follows from it in the
shape that reads need, written in the same transactions. `ledger_head` is one row: its lock puts writers in order.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: Raised with every change of the tables. A registry with a higher number was made by a newer tiercel.
SCHEMA_VERSION: Final = 1


class Base(DeclarativeBase):
    """Holds the metadata of all tables below."""


class SchemaRow(Base):
    """One row: which `SCHEMA_VERSION` the tables have."""

    __tablename__ = "tiercel_registry"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    schema_version: Mapped[int] = mapped_column(Integer)


class HeadRow(Base):
    """One row: the last event. Every writer locks it first."""

    __tablename__ = "ledger_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))


class EventRow(Base):
    """One ledger event. Rows are only ever inserted. `tiercel.registry.records.Event` explains the columns."""

    __tablename__ = "events"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    prev_hash: Mapped[str] = mapped_column(String(64))
    ts_us: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(String(32))
    model: Mapped[str] = mapped_column(String(64))
    version: Mapped[int | None] = mapped_column(Integer)
    alias: Mapped[str | None] = mapped_column(String(255))
    from_version: Mapped[int | None] = mapped_column(Integer)
    to_version: Mapped[int | None] = mapped_column(Integer)
    reason: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("events_by_model", "model", "seq"),)


class ModelRow(Base):
    """One registered model."""

    __tablename__ = "registered_models"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    created_us: Mapped[int] = mapped_column(BigInteger)


class VersionRow(Base):
    """One version. `manifest` and `facts` are canonical JSON; the digests are over their bytes."""

    __tablename__ = "model_versions"

    model: Mapped[str] = mapped_column(ForeignKey("registered_models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    created_us: Mapped[int] = mapped_column(BigInteger)
    manifest: Mapped[str] = mapped_column(Text)
    manifest_digest: Mapped[str] = mapped_column(String(64))
    facts: Mapped[str] = mapped_column(Text)
    facts_digest: Mapped[str] = mapped_column(String(64))

    __table_args__ = (Index("versions_by_content", "model", "manifest_digest"),)


class AliasRow(Base):
    """Where an alias points now."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(255), primary_key=True)
    number: Mapped[int] = mapped_column(Integer)

    __table_args__ = (ForeignKeyConstraint(["model", "number"], ["model_versions.model", "model_versions.number"]),)


class TagRow(Base):
    """One tag of a version."""

    __tablename__ = "tags"

    model: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    key: Mapped[str] = mapped_column(String(250), primary_key=True)
    value: Mapped[str] = mapped_column(Text)

    __table_args__ = (ForeignKeyConstraint(["model", "number"], ["model_versions.model", "model_versions.number"]),)
