from tiercel._hot.vector import VectorProgram

from tiercel.types import ServiceSchema

class Assembler:
    def __init__(
        self, model: str, version: int, schema: ServiceSchema | None, vectors: VectorProgram, accepts_missing: bool
    ) -> None: ...
