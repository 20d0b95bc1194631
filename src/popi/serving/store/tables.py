"""The schema as the queries see it. Migrations create the tables; a test checks that the two agree."""

from sqlalchemy import BigInteger, Column, Double, MetaData, Table, Text

metadata = MetaData()


def _text(name: str, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=nullable)


def _number(name: str, *, key: bool = False, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, primary_key=key, nullable=nullable, autoincrement=False)


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


tenants = Table(
    "tenants", metadata, _text("tenant", key=True), _time("created_at"), _time("served_at"), _time("held_until")
)

keys = Table(
    "keys",
    metadata,
    _text("key_id", key=True),
    _text("key_hash"),
    _text("scope"),
    _text("tenant"),
    _text("user_id", nullable=True),
    _time("created_at"),
    _time("revoked_at", nullable=True),
)

users = Table(
    "users",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _time("created_at"),
    _number("next_position"),
    _number("paused"),
    _time("resumed_at"),
    _number("signals_read", nullable=True),
    _number("base_version", nullable=True),
    _number("base_read", nullable=True),
    _time("rebuilt_at"),
    _number("learn_off"),
    _time("expires_at", nullable=True),
)

signals = Table(
    "signals",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _text("signal_id", key=True),
    _number("position"),
    _time("added_at"),
    _text("signal"),
)

summaries = Table(
    "summaries",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _number("version", key=True),
    _text("text"),
    _text("clauses"),
    _text("author"),
    _text("model", nullable=True),
    _time("created_at"),
    _text("forbidden"),
    _number("restores", nullable=True),
)

jobs = Table(
    "jobs",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _number("revision"),
    _time("first_at"),
    _time("due_at"),
    _text("lease", nullable=True),
    _time("lease_until", nullable=True),
    _number("attempts"),
    _time("failed_at", nullable=True),
    _text("error", nullable=True),
    _text("key_id", nullable=True),
    _number("bulk"),
    _text("held_by", nullable=True),
)

usage = Table(
    "usage",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _text("key_id", key=True),
    _number("seconds", key=True),
    Column("began_at", Double, primary_key=True),
    _number("renewals"),
    _number("calls"),
    _number("input_tokens"),
    _number("output_tokens"),
    _time("expires_at"),
)

answers = Table(
    "answers",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _text("answer_id", key=True),
    _text("prompt"),
    _text("answer"),
    _number("version"),
    _time("expires_at"),
    _text("upstream_id"),
)

forbidden_words = Table(
    "forbidden_words",
    metadata,
    _text("tenant", key=True),
    _text("user_id", key=True),
    _text("hash", key=True),
    _text("words"),
)

deleted_signals = Table(
    "deleted_signals", metadata, _text("tenant", key=True), _text("user_id", key=True), _text("hash", key=True)
)

opt_outs = Table("opt_outs", metadata, _text("hash", key=True), _number("paused"), _number("learn_off"))

erasures = Table("erasures", metadata, _text("user_hash", key=True), _time("erased_at"), _time("expires_at"))

sessions = Table(
    "sessions",
    metadata,
    _text("session_hash", key=True),
    _text("tenant"),
    _text("user_id", nullable=True),
    _text("key_id", nullable=True),
    _text("key_hash", nullable=True),
    _time("expires_at"),
    _text("member", nullable=True),
    _text("role", nullable=True),
)

opened_links = Table("opened_links", metadata, _text("link_hash", key=True), _time("expires_at"))

audit = Table(
    "audit",
    metadata,
    _text("entry", key=True),
    _time("at"),
    _text("actor"),
    _text("role"),
    _text("way"),
    _text("action"),
    _text("tenant"),
    _text("user_id", nullable=True),
    _text("user_hash"),
)

chores = Table("chores", metadata, _text("chore", key=True), _time("due_at"))

webhooks = Table("webhooks", metadata, _text("name", key=True), _text("events"), _time("seconds"), _time("expires_at"))

outbox = Table(
    "outbox",
    metadata,
    _text("endpoint", key=True),
    _text("event_id", key=True),
    _text("event"),
    _text("tenant"),
    _text("user_id"),
    _number("position"),
    _number("version", nullable=True),
    _text("merged_into", nullable=True),
    _time("happened_at"),
    _time("due_at"),
    _number("attempts"),
    _text("lease", nullable=True),
    _time("lease_until", nullable=True),
    _time("expires_at"),
)

changes = Table("changes", metadata, _number("position", key=True), _text("kind", key=True), _text("subject", key=True))

processes = Table("processes", metadata, _text("process", key=True))

fences = Table("fences", metadata, _text("process", key=True), _text("fence", key=True))

settings = Table("settings", metadata, _text("name", key=True), _text("value"))

migrations = Table(
    "popi_migrations", metadata, _number("number", key=True), _text("name"), _text("sha256"), _time("applied_at")
)
