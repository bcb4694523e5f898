"""The server's transactions on SQLite, many at once."""

import asyncio
import sys
from pathlib import Path

import pytest
from flows.server import lock_first
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from conftest import ROOT, run

TOGETHER = 10


async def heartbeats(folder: Path) -> int:
    """Transactions at once which each read and then write, as a worker's heartbeat does; how many
    rows there are in the end.
    """
    database = AioSqliteConfiguration(f"sqlite+aiosqlite:///{folder}/server.db", timeout=60)
    engine = await database.engine()

    async def run(*statements: str) -> int:
        async with await database.session(engine) as session, database.begin_transaction(session):
            for statement in statements:
                result = await session.execute(text(statement))
                await asyncio.sleep(0.01)
            return int(result.scalar() or 0) if statement.startswith("select") else 0

    await run("create table beats (number integer)")
    read, write = "select count(*) from beats", "insert into beats values (1)"
    await asyncio.gather(*[run(read, write) for _ in range(TOGETHER)])
    return await run(read)


def test_transactions_that_read_and_then_write_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = AioSqliteConfiguration.begin_transaction
    monkeypatch.setattr(AioSqliteConfiguration, "begin_transaction", begin)  # put back afterwards
    lock_first()
    assert asyncio.run(heartbeats(tmp_path)) == TOGETHER


def test_prefect_alone_refuses_them(tmp_path: Path) -> None:
    """Where this fails, Prefect has mended it, and flows/server.py may go."""
    with pytest.raises(OperationalError, match="database is locked"):
        asyncio.run(heartbeats(tmp_path))


def test_the_background_is_refused() -> None:
    ended = run(ROOT, sys.executable, "-m", "flows.server", "start", "--background")
    assert ended.returncode == 1
    assert "--background starts another process" in ended.stderr
