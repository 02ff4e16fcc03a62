"""The daily job in small (small_daily.py): days that are refused, accepted, skipped, and looked at again."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from small_daily import World, config_of, day_of, history, killable, reference_weights, run, train_first_days

from features.errors import ConfigError
from pipeline.daily.refusal import Refused
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line

__all__ = ["killable"]  # fixtures


def test_an_anomalous_day_is_refused_until_it_is_accepted(killable: World, tmp_path: Path) -> None:
    """Catches a day cut short that is trained, an acceptance that a restart forgets, or later days that do not wait."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous.add(day_of(4))
    text = (
        rf"^{day_of(4)} is refused by preflight: 10 rows, usual are 100 \(daily.preflight.rows_ratio 1.5\)\. nothing "
        rf"of it is trained, LATEST stays at {day_of(3)}, later days wait: .* --accept-anomaly REASON, .* --skip-day"
    )
    for day in (day_of(4), day_of(5)):
        with pytest.raises(Refused, match=text):
            run(config, line, killable, day)
    assert run(config, line, killable, day_of(4), kill_at=4, anomaly="a public holiday") is None
    assert run(config, line, killable, day_of(4))["result"] == "published"
    entry = Ledger(line).find(day_of(4))
    assert entry is not None
    assert entry.preflight.accepted == "a public holiday"
    assert len(entry.preflight.problems) == 1


def test_what_is_accepted_of_one_day_is_not_accepted_of_others(killable: World, tmp_path: Path) -> None:
    """Catches a reason for one day that lets the missing days before it pass, whatever is wrong with them."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous |= {day_of(4), day_of(5)}
    with pytest.raises(Refused, match=rf"^{day_of(4)} is refused by preflight"):
        run(config, line, killable, day_of(5), anomaly="a public holiday")


def test_a_log_that_was_written_again_is_looked_at_again(killable: World, tmp_path: Path) -> None:
    """Catches a day whose log was completed after it was refused, and that is refused for what it was."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous.add(day_of(4))
    with pytest.raises(Refused):
        run(config, line, killable, day_of(4))
    killable.anomalous, killable.versions[day_of(4)] = set(), 2
    assert run(config, line, killable, day_of(4))["result"] == "published"


def test_a_bad_day_is_refused_by_the_gate(killable: World, tmp_path: Path) -> None:
    """Catches a model that was trained on shuffled labels and published, or trained anew at every start."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.bad.add(day_of(4))
    text = rf"^{day_of(4)} is refused by gate: task 'ctr': yesterday's model .*0.5"
    for _ in range(2):
        with pytest.raises(Refused, match=text):
            run(config, line, killable, day_of(4))
    found = line.newest()
    assert found is not None
    assert found.complete
    assert found.attempt_number == 5  # one attempt: the second start looked at the same model
    killable.versions[day_of(4)], killable.bad = 2, set()  # the log is written again, and right
    run(config, line, killable, day_of(4))
    (entry,) = Ledger(line).generations(day_of(4))
    assert entry.logs == {f"dt={day_of(4)}/a.parquet": "100-2"}
    killable.bad.add(day_of(5))
    run(config, line, killable, day_of(5), gate="labels are late")
    entry = Ledger(line).find(day_of(5))
    assert entry is not None
    assert entry.gate.accepted == "labels are late"


def test_a_skipped_day_leaves_the_model_as_it_is(killable: World, tmp_path: Path) -> None:
    """Catches a day that is left out and trained all the same, or that stops the days after it."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 2)
    run(config, line, killable, day_of(2), skip="no log")
    run(config, line, killable, day_of(3))
    found = history(line)
    assert [(day, generation) for day, generation, _ in found] == [(day_of(number), 1) for number in range(4)]
    assert found[2][2] == found[1][2]
    assert found[3][2] == reference_weights(found[1][2], day_of(3), "100-1")
    empty = Line.of(f"{config.root}/other", "main")
    with pytest.raises(ConfigError, match="nothing is published, so begin with a later day"):
        run(config, empty, killable, day_of(0), skip="no log")


def test_a_refusal_is_told(killable: World, tmp_path: Path) -> None:
    """Catches a webhook that is not called, that stops the job when it is away, or that is written down somewhere."""
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    config = config_of(tmp_path, on_refusal={"webhook": f"http://127.0.0.1:{server.server_port}/secret"})
    line = train_first_days(config, killable, 4)
    killable.anomalous.add(day_of(4))
    with pytest.raises(Refused):
        run(config, line, killable, day_of(4))
    server.shutdown()
    server.server_close()
    with pytest.raises(Refused):  # nobody listens any more
        run(config, line, killable, day_of(4))
    (told,) = heard
    assert (told["project"], told["line"], told["day"], told["step"]) == ("tests", "main", day_of(4), "preflight")
    assert told["text"].startswith(f"{day_of(4)} is refused by preflight")
    assert "secret" not in json.dumps(config.model_dump(mode="json")) + repr(config)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
