"""The errors a user can meet. A combination we refuse, alike on every rank, is an UnsupportedError."""


class UnsupportedError(ValueError):
    """A combination dit-usp does not support: the text says what, the numbers, and the nearest choice that works."""


class RankError(RuntimeError):
    """A rank died, failed or stopped answering, and with it the job.

    Attributes:
        rank: which one.
        stage: what it was doing: "load", "idle", "encode", "denoise step 3/10", "decode", "save".
        cause: why.
    """

    def __init__(self, rank: int, stage: str, cause: str, log: str) -> None:
        super().__init__(f"rank {rank} {cause} during {stage}; its log is {log}")
        self.rank, self.stage, self.cause = rank, stage, cause
