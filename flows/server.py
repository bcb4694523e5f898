"""Prefect's server, with transactions on SQLite that wait for each other.

    python -m flows.server start [--host HOST] [--port PORT]...

The words are those of `prefect server`. SQLite lets one transaction write at a time, and the others
wait their turn; but one that has read already when another writes is refused at once, whatever the
timeout ("database is locked": its snapshot is old). Prefect takes the lock first where somebody saw
that happen, not everywhere (PrefectHQ/prefect, pull requests 17566 and 22967). Here each declared
transaction takes it when it begins. PostgreSQL is left as it is. `--background` is refused: Prefect
starts another process then, in which nothing of this holds.
"""

import functools
import sys

from prefect.server.database.configurations import AioSqliteConfiguration


def lock_first() -> None:
    """Let each SQLite transaction of this process take the write lock when it begins."""
    begin = AioSqliteConfiguration.begin_transaction

    @functools.wraps(begin)
    def locked(self, session, with_for_update=False):  # type: ignore[no-untyped-def]
        return begin(self, session, with_for_update=True)

    AioSqliteConfiguration.begin_transaction = locked  # type: ignore[method-assign]


def main() -> None:
    """Run `prefect server` with this process's arguments."""
    if {"--background", "-b"} & set(sys.argv):
        sys.exit(
            "error: --background starts another process, whose SQLite transactions don't wait for"
            " each other. Leave it out, and let your service manager (or `nohup ... &`) keep this"
            " one in the background."
        )
    from prefect.cli import app

    lock_first()
    sys.argv[1:1] = ["server"]
    app()


if __name__ == "__main__":
    main()
