"""Independent jobs: in this process, in others, on a Ray cluster; what dies, fails or is stopped."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import calls
import pytest
import torch

from hadaptive.data import worker_count
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.jobs import machine, processes, run
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.exchange import give, take
from hadaptive.jobs.job import Job, JobDiedError
from hadaptive.jobs.run import run_jobs

TWO = Sharing(jobs=2)
PLACES = run.places.__wrapped__  # conftest has another one
SQUARES = [Job(f"square {number}", partial(calls.square, number)) for number in range(3)]


@pytest.fixture(scope="module")
def ray() -> Iterator[Sharing]:
    """A cluster of two cores on this machine."""
    import ray

    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(Path(__file__).parent)  # workers find modules of the folder that Ray began in, and no others
        ray.init(address="local", num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    yield Sharing("ray")
    ray.shutdown()


def test_one_at_a_time_is_done_here_and_in_order() -> None:
    before = torch.get_num_threads()
    jobs = [*SQUARES, Job("threads", calls.threads)]
    found = [outcome.result() for outcome in run_jobs(jobs, Sharing(jobs=1), threads=before + 1)]
    assert found == [*((number**2, os.getpid(), False) for number in range(3)), before + 1]
    assert torch.get_num_threads() == before


def test_several_are_done_in_other_processes_with_one_thread_each() -> None:
    jobs = [*SQUARES, Job("threads", calls.threads)]
    found = {outcome.job.name: outcome.result() for outcome in run_jobs(jobs, TWO, quiet=True)}
    assert found.pop("threads") == 1
    assert {name: value[0] for name, value in found.items()} == {f"square {n}": n**2 for n in range(3)}
    assert os.getpid() not in {value[1] for value in found.values()}
    assert all(value[2] for value in found.values())


def test_so_many_are_there_at_once(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = [
        Job("first", partial(calls.wait_for, first, second)),
        Job("second", partial(calls.wait_for, second, first)),
    ]
    assert [outcome.result() for outcome in run_jobs(jobs, TWO, quiet=True)] == [True, True]


def test_as_many_run_at_once_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert PLACES() == 3
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert PLACES() == 2


@pytest.mark.parametrize(("allowed", "expected"), [("", {"0", "1"}), ("2,GPU-7f", {"2", "GPU-7f"})])
def test_each_of_several_gpus_has_a_job(allowed: str, expected: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that this process may use, by whatever name."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    jobs = [Job(name, calls.device) for name in ("first", "second")]
    assert {outcome.result() for outcome in processes.in_processes(jobs, 2, 1, quiet=True)} == expected
    (outcome,) = processes.in_processes(jobs[:1], 2, 1, quiet=True, cpu=True)
    assert outcome.result() == allowed


def test_what_begins_and_ends_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [*SQUARES[:1], Job("a rate", calls.diverges)]
    list(run_jobs(jobs, TWO))
    said = capsys.readouterr().out
    for text in ("== square 0\n", "== square 0: done after", "== a rate: ended by an error after", "(2 of 2)"):
        assert text in said


def test_a_process_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    """Its thread held the lock of the standard input: each ended by a signal, and said so."""
    ended = []
    wait = processes._Process.close
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(processes._Process, "close", lambda own: (wait(own), ended.append(own.process.returncode)))
        list(run_jobs(SQUARES[:2], TWO, quiet=True))
    assert ended == [0, 0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("how", [Sharing(jobs=1), TWO])
def test_what_fails_is_an_outcome_beside_the_others(how: Sharing) -> None:
    jobs = [Job("a rate", calls.diverges), *SQUARES[:1], Job("odd", calls.unreadable)]
    found = {outcome.job.name: outcome for outcome in run_jobs(jobs, how, quiet=True)}
    assert isinstance(found["a rate"].error, calls.DivergedError)
    assert "one two" in str(found["odd"].error)
    assert found["square 0"].value[0] == 0
    with pytest.raises(calls.DivergedError, match="the loss is nan"):
        found["a rate"].result()


def test_a_process_that_dies_is_begun_once_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job("mortal", partial(calls.dies, tmp_path, 1)), *SQUARES[:1]]
    found = {outcome.job.name: outcome.value for outcome in run_jobs(jobs, TWO)}
    assert found["mortal"] == "alive"
    assert "mortal: its process was killed" in capsys.readouterr().out


def test_a_training_that_somebody_else_stops_goes_on(tmp_path: Path) -> None:
    """It was left out without a word, and its row was lost."""
    (outcome,) = run_jobs([Job("stopped", partial(calls.stops, tmp_path))], TWO, quiet=True)
    assert outcome.result() == "went on"


def test_what_will_not_mend_is_not_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job("broken", calls.fails), Job("odd", calls.unsendable)]
    found = {outcome.job.name: str(outcome.error) for outcome in run_jobs(jobs, TWO)}
    assert found["broken"] == "broken: its process ended with status 3, as the lines above say"
    assert "odd: its result cannot be sent" in found["odd"]
    assert "once more" not in capsys.readouterr().out


def test_modules_are_those_that_are_found_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in the folder that a person is in came first, and were of another project."""
    monkeypatch.chdir(tmp_path)
    for name in ("hadaptive", "json", "calls"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('another module')", encoding="utf-8")
    (outcome,) = run_jobs([Job("here", calls.here)], TWO, quiet=True)
    assert outcome.result() == str(tmp_path)


def test_cores_are_divided_among_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert machine.cores() == 8
    monkeypatch.setenv(machine.AT_ONCE, "4")
    assert machine.cores() == 2
    size = (64, 3, 224, 224)
    assert worker_count(-1, in_memory=False, device="cpu", batch=size, shared=sys.maxsize) == 1
    monkeypatch.setenv(machine.AT_ONCE, "100")
    assert machine.cores() == 1
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    if free:  # not even one batch each
        assert worker_count(-1, in_memory=False, device="cpu", batch=(free // 1200, 1, 1, 4), cores=8) == 0


def test_one_that_dies_again_says_so_and_ends_no_other(tmp_path: Path) -> None:
    jobs = [Job("mortal", partial(calls.dies, tmp_path, 9)), *SQUARES[:1]]
    found = {outcome.job.name: outcome for outcome in run_jobs(jobs, TWO, quiet=True)}
    assert isinstance(found["mortal"].error, JobDiedError)
    assert str(found["mortal"].error) == (
        "mortal: its process was killed, for lack of memory perhaps: fewer --jobs need less"
    )
    assert found["square 0"].value[0] == 0


def until(number: int, path: Path, pattern: str) -> None:
    end = time.monotonic() + 60
    while len(list(path.glob(pattern))) < number and time.monotonic() < end:
        time.sleep(0.05)
    assert len(list(path.glob(pattern))) == number


def interrupted(how: Sharing, number: int, path: Path) -> None:
    """Three trainings, two of which have begun when a signal comes, leave a checkpoint each."""
    jobs = [Job(str(number), partial(calls.trains, path)) for number in range(3)]

    def interrupt() -> None:
        until(2, path, "begun-*")
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(TrainingInterruptedError):
        list(run_jobs(jobs, how, quiet=True))
    thread.join()
    assert len(list(path.glob("checkpoint-*"))) == 2  # the third had not begun


def test_a_signal_ends_all_with_a_checkpoint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    interrupted(TWO, signal.SIGINT, tmp_path)
    assert "with a checkpoint each" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_asks_for_no_more_ends_the_rest(tmp_path: Path) -> None:
    jobs = [Job("a rate", calls.diverges), Job("long", partial(calls.trains, tmp_path))]
    outcomes = run_jobs(jobs, TWO, quiet=True)
    assert isinstance(next(outcomes).error, calls.DivergedError)
    until(1, tmp_path, "begun-*")
    outcomes.close()
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1


ORPHANS = """
import sys
from functools import partial
from pathlib import Path
import calls
from hadaptive.jobs.exchange import give, take
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import run_jobs
jobs = [Job(str(number), partial(calls.trains, Path(sys.argv[1]))) for number in range(2)]
list(run_jobs(jobs, Sharing(jobs=2), quiet=True))  # at a script's top, without a guard
"""


def test_processes_end_with_the_one_that_began_them(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    script = tmp_path / "script.py"
    script.write_text(ORPHANS, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    until(2, tmp_path, "begun-*")
    process.kill()
    process.wait()
    until(2, tmp_path, "checkpoint-*")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="other systems have other rights")
def test_what_others_can_write_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir(mode=0o700)
    give({"of": "ours"}, folder / "job")
    assert take(folder / "job") == {"of": "ours"}
    for place, mode in ((folder / "job", 0o666), (folder, 0o777)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(PermissionError, match="can be written by others"):
            take(folder / "job")
        place.chmod(before)


# -- Ray ------------------------------------------------------------------------------------------------------


def test_a_cluster_does_what_processes_do(ray: Sharing, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = [*SQUARES, *(Job(call.__name__, call) for call in (calls.threads, calls.diverges, calls.unreadable))]
    jobs += [
        Job("first", partial(calls.wait_for, first, second)),
        Job("second", partial(calls.wait_for, second, first)),
    ]
    found = {outcome.job.name: outcome for outcome in run_jobs(jobs, ray, quiet=True)}
    assert [found[f"square {number}"].value[0] for number in range(3)] == [0, 1, 4]
    assert found["square 0"].value[1] != os.getpid()
    assert found["square 0"].value[2]
    assert found["threads"].value == 1
    assert isinstance(found["diverges"].error, calls.DivergedError)
    assert "one two" in str(found["unreadable"].error)
    assert found["first"].value
    assert found["second"].value


def test_paths_are_those_of_this_process(ray: Sharing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were relative to the folder in which the cluster was begun."""
    monkeypatch.chdir(tmp_path)
    assert next(run_jobs([Job("here", calls.here)], ray, quiet=True)).result() == str(tmp_path)


def test_what_no_machine_of_a_cluster_can_do_is_said(ray: Sharing) -> None:
    with pytest.raises(
        UserError, match=r"no machine of the Ray cluster has 64 cores for --threads, the most is 2"
    ):
        list(run_jobs(SQUARES, ray, threads=64, quiet=True))


def test_a_clusters_worker_that_dies_is_replaced(ray: Sharing, tmp_path: Path) -> None:
    jobs = [Job("mortal", partial(calls.dies, tmp_path, 2)), *SQUARES[:1]]
    found = {outcome.job.name: outcome.value for outcome in run_jobs(jobs, ray, quiet=True)}
    assert found["mortal"] == "alive"
    (tmp_path / "lost").mkdir()
    outcome = next(run_jobs([Job("lost", partial(calls.dies, tmp_path / "lost", 99))], ray, quiet=True))
    assert isinstance(outcome.error, JobDiedError)
    assert str(outcome.error).startswith("lost: ")


def test_a_signal_ends_a_clusters_jobs_with_a_checkpoint(ray: Sharing, tmp_path: Path) -> None:
    interrupted(ray, signal.SIGTERM, tmp_path)


def test_a_cluster_that_cannot_be_reached_is_one_sentence(ray: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as package

    def refuse(**how: object) -> None:
        raise ConnectionError("no route to 10.0.0.1\nand more")

    monkeypatch.setattr(package, "is_initialized", lambda: False)
    monkeypatch.setattr(package, "init", refuse)
    with pytest.raises(UserError, match=r"^no Ray cluster can be reached or begun: no route to 10.0.0.1$"):
        list(run_jobs(SQUARES, ray, quiet=True))
