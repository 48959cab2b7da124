"""Where receipts come from: the journal while it has the record, then the files that it was kept in."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from tiercel.errors import JournalError, NotFoundError, ReceiptCorruptError, ReceiptNotFoundError
from tiercel.explain.receipts import Receipt
from tiercel.monitor.lookup import find_records
from tiercel.monitor.recording import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tiercel.monitor.prediction_record import Record
    from tiercel.monitor.receipt_files import DamagedReceipt
    from tiercel.settings import Settings


def find_receipt(settings: Settings, prediction_id: str) -> list[Receipt]:
    """The receipts of one prediction: one, or several of a large request, by rows.

    Raises:
        RequestError: it cannot be the id of a reply.
        ReceiptNotFoundError: nothing is kept of it; the message says why that may be.
        JournalError, ReceiptCorruptError: what is kept of it was changed, or is damaged.
    """
    damage: JournalError | None = None
    absent = ""
    try:
        return [receipt_of(record) for record in find_records(settings.state_dir / JOURNAL, prediction_id)]
    except NotFoundError as error:
        absent = str(error)
    except JournalError as error:  # what was converted before may be whole
        damage = error
    # Only now: a worker, which is mostly asked for what the journal still has, needs neither Arrow nor DuckDB in its memory.
    from tiercel.monitor.receipt_files import RECEIPTS, find_receipts

    directory = settings.state_dir / RECEIPTS
    try:
        records = [each for each in find_receipts(directory, prediction_id) if not _is_masked(each, settings)]
    except JournalError as error:
        raise ReceiptCorruptError(str(error)) from error
    if sum(len(record.rows) for record in records) == (records[0].request_rows if records else -1):
        return [receipt_of(record) for record in records]
    if damage is not None:
        raise damage
    days = settings.monitor.receipts_days
    kept = f"receipts are kept for {days:g} days" if settings.monitor.receipts else "[monitor] receipts is off"
    raise ReceiptNotFoundError(
        f"{absent}. Nor is it among the receipts under {directory}: {kept}, and none are kept of models with masked names"
    )


def read_all(
    settings: Settings, *, model: str | None = None, since_us: int | None = None, until_us: int | None = None
) -> Iterator[list[Receipt]]:
    """The receipts of every prediction, each as of `find_receipt`, brought up to what the journal holds before.

    Args:
        settings: of the project.
        model: only its.
        since_us: only of requests received from then on.
        until_us: ... and before then.

    Raises:
        ReceiptCorruptError: a receipt was changed, after all before it.
        MonitorStorageError, TableError: receipts cannot be brought up to date.
    """
    from tiercel.monitor.receipt_files import DamagedReceipt

    for found in scan_all(settings, model=model, since_us=since_us, until_us=until_us):
        if isinstance(found, DamagedReceipt):
            raise corrupt_receipt(found) from found.error
        yield found


def scan_all(
    settings: Settings, *, model: str | None = None, since_us: int | None = None, until_us: int | None = None
) -> Iterator[list[Receipt] | DamagedReceipt]:
    """As `read_all`, but past damage: a prediction one of whose receipts was changed comes as that.

    Args:
        settings: of the project.
        model: only its.
        since_us: only of requests received from then on.
        until_us: ... and before then.

    Raises:
        MonitorStorageError, TableError: receipts cannot be brought up to date.
    """
    from tiercel.monitor.predictions import PredictionTable
    from tiercel.monitor.receipt_files import RECEIPTS, DamagedReceipt, scan_receipts

    PredictionTable(settings.state_dir, settings.monitor).convert(waits=True)
    found = scan_receipts(settings.state_dir / RECEIPTS, model=model, since_us=since_us, until_us=until_us)
    kept = (each for each in found if isinstance(each, DamagedReceipt) or not _is_masked(each, settings))
    for _, parts in itertools.groupby(kept, key=lambda each: each.id or each):
        records: list[Record] = []
        damaged: DamagedReceipt | None = None
        for part in parts:
            if isinstance(part, DamagedReceipt):
                damaged = damaged or part
            else:
                records.append(part)
        yield [receipt_of(record) for record in records] if damaged is None else damaged


def corrupt_receipt(damaged: DamagedReceipt) -> ReceiptCorruptError:
    """The error that says which receipt cannot be read, and where it is."""
    return ReceiptCorruptError(str(damaged.error))


def _is_masked(record: Record, settings: Settings) -> bool:
    """Whether a receipt, which was written before that, is of a plan that has a masked name by now."""
    masked = settings.monitor.masked
    return bool(masked) and not masked.isdisjoint((*record.plan.features, *(name for name, _ in record.plan.join_keys)))


def receipt_of(record: Record) -> Receipt:
    """A record of the journal as a receipt."""
    plan, sent = record.plan, record.request
    return Receipt(
        id=record.id,
        model=plan.model,
        version=plan.version,
        tier=plan.tier,
        service=plan.service,
        service_fingerprint=plan.service_fingerprint,
        base=plan.base,
        bindings=dict(plan.bindings),
        received_us=record.received_us,
        now_us=record.now_us,
        path="compiled" if record.is_fast else "general",
        arm=record.arm,
        degraded=record.degraded,
        degrade_reason=record.degrade_reason,
        is_shadow=record.is_shadow,
        is_many=record.is_many,
        request_kind=None if sent is None else sent.kind,
        request=None if sent is None else sent.body,
        request_header=-1 if sent is None else sent.header_length,
        request_absent="unknown" if sent is None else sent.absent,
        first_row=record.first_row,
        request_rows=record.request_rows,
        features=plan.features,
        rows=record.rows,
        scores=record.scores,
        join_keys=tuple(name for name, _ in plan.join_keys),
        keys=record.keys,
    )
