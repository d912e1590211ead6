"""A session in MLflow: one parent run, and a nested run per trial. Needs mlflow-skinny (the extra `track`).

Runs are found again by a tag with the session's key. A complete run is not written any more. In another, the steps of a
metric that are there already are left out, because some stores would keep a second copy.
"""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import urlsplit

from ..data.errors import TrackingError
from .snapshot import Series, Snapshot, TrackedTrial
from .tracker import Tracker

# Defaults for a server that is down: without them the client tries for minutes. Users' own settings are kept.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient  # noqa: E402 - reads its settings when it is imported
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID  # noqa: E402
from requests.exceptions import RequestException  # noqa: E402

EXPERIMENT = "virtualmle"
KEY, TRIAL, COMPLETE, DIGEST = "virtualmle.key", "virtualmle.trial", "virtualmle.complete", "virtualmle.digest"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "cancelled": "KILLED", "crashed": "FAILED"}
BATCH = 100  # parameters of one request
TAG_LENGTH = 5000

P = ParamSpec("P")
R = TypeVar("R")


class MlflowTracker(Tracker):
    """Runs of the MLflow server, or of the file or database, at `uri`."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        self.target = f"MLflow at {uri.replace(f'{parts.username}:{parts.password}@', '') if parts.password else uri}"
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def sync(self, snapshot: Snapshot) -> None:
        """Add the missing runs, parameters, metrics and files."""
        try:
            self._sync(snapshot)
        except (MlflowException, RequestException, OSError) as error:
            reason = " ".join(str(error).split())
            raise TrackingError(f"{self.target} cannot be written: {reason:.200}") from None

    def _sync(self, snapshot: Snapshot) -> None:
        experiment = self._experiment()
        runs = self._runs(experiment, snapshot.key)
        parent = runs.get("") or self._create(experiment, snapshot)
        for trial in snapshot.trials:
            run = runs.get(trial.handle) or self._create_nested(experiment, parent, snapshot, trial)
            if COMPLETE not in run.data.tags:
                self._write_trial(run, trial)
        self._write_session(parent, snapshot)

    def _experiment(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        return str(found.experiment_id if found else self._client.create_experiment(EXPERIMENT))

    def _runs(self, experiment: str, key: str) -> dict[str, Run]:
        """The runs of a session by the handle of their trial; the parent's is empty."""
        found: dict[str, Run] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([experiment], f"tags.`{KEY}` = '{key}'", page_token=token)
            found |= {run.data.tags.get(TRIAL, ""): run for run in page}
            token = page.token
            if not token:
                return found

    def _create(self, experiment: str, snapshot: Snapshot) -> Run:
        started = int(min((t.started for t in snapshot.trials), default=time.time()) * 1000)
        name = snapshot.session.id
        return self._client.create_run(experiment, started, tags={KEY: snapshot.key}, run_name=name)

    def _create_nested(self, experiment: str, parent: Run, snapshot: Snapshot, trial: TrackedTrial) -> Run:
        tags = {KEY: snapshot.key, TRIAL: trial.handle, MLFLOW_PARENT_RUN_ID: parent.info.run_id}
        return self._client.create_run(experiment, int(trial.started * 1000), tags=tags, run_name=trial.handle)

    def _write_trial(self, run: Run, trial: TrackedTrial) -> None:
        self._write_params(run, {name: str(value) for name, value in (trial.knobs or {}).items()})
        times = [trial.started + seconds for seconds in trial.seconds]
        for name, points in trial.series.items():
            self._write_series(run, name, points, times if len(times) == len(points) else None)
        if not trial.is_over:
            self._write_tags(run, trial.tags)
            return
        ended = trial.ended or time.time()
        self._write_figures(run, trial.figures, trial.step, ended)
        self._write_tags(run, trial.tags)
        self._client.set_terminated(run.info.run_id, STATUS[trial.status], int(ended * 1000))
        self._client.set_tag(run.info.run_id, COMPLETE, "true")  # last: a run that lacks it is written again

    def _write_session(self, run: Run, snapshot: Snapshot) -> None:
        self._write_params(run, {name: snapshot.tags[name] for name in ("dataset", "backbone", "seed", "protocol")})
        self._write_series(run, "best_ndcg_at_10", snapshot.best, None)
        number = max((trial.number for trial in snapshot.trials), default=0)
        if snapshot.is_over:
            self._write_figures(run, snapshot.figures | snapshot.test, number, time.time())
        self._write_files(run, snapshot)
        self._write_tags(run, snapshot.tags)
        if snapshot.is_over and run.info.status == "RUNNING":
            self._client.set_terminated(run.info.run_id, "FAILED" if snapshot.session.state == "void" else "FINISHED")

    def _write_params(self, run: Run, params: Mapping[str, str]) -> None:
        missing = [Param(name, text) for name, text in params.items() if name not in run.data.params]
        for start in range(0, len(missing), BATCH):
            self._client.log_batch(run.info.run_id, params=missing[start : start + BATCH])

    def _write_series(self, run: Run, name: str, points: Series, times: list[float] | None) -> None:
        """Add the steps of a metric that the run does not have."""
        recorded = self._client.get_metric_history(run.info.run_id, name) if name in run.data.metrics else []
        known = {metric.step for metric in recorded}
        now = time.time()
        moments = times or [now] * len(points)
        missing = [
            Metric(name, value, int(moment * 1000), step)
            for (step, value), moment in zip(points, moments, strict=True)
            if step not in known
        ]
        if missing:
            self._client.log_batch(run.info.run_id, metrics=missing)

    def _write_figures(self, run: Run, figures: Mapping[str, float], step: int, moment: float) -> None:
        missing = {name: value for name, value in figures.items() if name not in run.data.metrics}
        if missing:
            metrics = [Metric(name, value, int(moment * 1000), step) for name, value in missing.items()]
            self._client.log_batch(run.info.run_id, metrics=metrics)

    def _write_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        named = {f"virtualmle.{name}": text[:TAG_LENGTH] for name, text in tags.items()}
        changed = [RunTag(name, text) for name, text in named.items() if run.data.tags.get(name) != text]
        if changed:
            self._client.log_batch(run.info.run_id, tags=changed)

    def _write_files(self, run: Run, snapshot: Snapshot) -> None:
        """Upload the report and the export, unless the run has this version of them."""
        upload: dict[bool, Callable[[str, Path, str], None]] = {True: self._upload_folder, False: self._upload_file}
        for name, path, digest in snapshot.files:
            if run.data.tags.get(f"{DIGEST}.{name}") != digest:
                upload[path.is_dir()](run.info.run_id, path, name)
                self._client.set_tag(run.info.run_id, f"{DIGEST}.{name}", digest)

    def _upload_folder(self, run: str, path: Path, name: str) -> None:
        self._client.log_artifacts(run, str(path), name)

    def _upload_file(self, run: str, path: Path, name: str) -> None:
        self._client.log_artifact(run, str(path), name)
