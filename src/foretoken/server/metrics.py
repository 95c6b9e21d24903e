"""What the server counts, for Prometheus.

Where vLLM has a metric of the same meaning, ours has its name with the prefix ``foretoken:``, so that a dashboard needs
only another prefix. No metric has a label that says who asked or what.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from foretoken.api.language_model import LanguageModel
from foretoken.memory.namespaces import Namespaces
from foretoken.memory.prefixes import Prefixes
from foretoken.server.answers import Part, Ready
from foretoken.server.scheduler import Scheduler, Stopped

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)
POSITIONS = 16  # of which accepted guesses are told apart; deeper ones count with the last
LABEL = "model_name"


class Metrics:
    """All metrics of a server.

    Args:
        model_name: What clients call the model.
        scheduler: Which knows how many requests run and wait.
        lm: The size of whose namespaces is told, summed for each owner, and what its prompts began with.
    """

    def __init__(self, model_name: str, scheduler: Scheduler, lm: LanguageModel) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._gauge("num_requests_running", "Requests that have begun.").set_function(lambda: scheduler.num_running)
        self._gauge("num_requests_waiting", "Requests that wait to begin.").set_function(lambda: scheduler.num_waiting)
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts that were read.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens of answers.")
        self.drafts = self._counter("spec_decode_num_drafts", "Forwards that verified a draft.")
        self.draft_tokens = self._counter("spec_decode_num_draft_tokens", "Guesses that were verified.")
        self.accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Guesses that were right.")
        self.first_token = self._seconds("time_to_first_token_seconds", "From a request's arrival to its first token.")
        self.token = self._seconds("request_time_per_output_token_seconds", "Mean of a request.", TOKEN_SECONDS)
        self.latency = self._seconds("e2e_request_latency_seconds", "From a request's arrival to its end.")
        self.queue = self._seconds("request_queue_time_seconds", "From a request's arrival to its first forward.")
        self.rows = self._seconds("rows_per_forward", "Rows of a forward: the last token and the draft.", ROWS)
        self.draft_seconds = self._counter("draft_seconds", "Seconds that drafters took.")
        self.saved = self._gauge("seconds_saved", "Seconds that plain steps would have taken more, by estimate.")
        self._success = self._by("request_success", "Answers, by how they ended.", "finished_reason")
        self._failure = self._by("request_failure", "Requests that were not answered to the end, by why.", "reason")
        positions = self._by("spec_decode_num_accepted_tokens_per_pos", "Right guesses, by depth.", "position")
        self.accepted_at = [positions.labels(model_name, str(position)) for position in range(POSITIONS)]
        self._registry.register(_Memory(lm.memories))
        if lm.prefixes is not None:
            self._registry.register(_Prefixes(model_name, lm.prefixes))
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def finished(self, reason: str) -> None:
        """An answer has ended."""
        self._success.labels(self._model_name, reason).inc()

    def failed(self, reason: str) -> None:
        """A request got no answer, or not all of it."""
        self._failure.labels(self._model_name, reason).inc()

    def _by(self, name: str, about: str, label: str) -> Counter:
        return Counter(f"foretoken:{name}", about, [LABEL, label], registry=self._registry)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(f"foretoken:{name}", about, [LABEL], registry=self._registry).labels(self._model_name)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"foretoken:{name}", about, [LABEL], registry=self._registry).labels(self._model_name)

    def _seconds(self, name: str, about: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
        metric = Histogram(f"foretoken:{name}", about, [LABEL], registry=self._registry, buckets=buckets)
        return metric.labels(self._model_name)


class Meter:
    """Counts for one request, in the scheduler's thread.

    Args:
        metrics: Where.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._arrived_at = time.perf_counter()
        self._first_at = 0.0  # when the first token came
        self._num_tokens = 0

    def add(self, item: Ready | Part) -> None:
        """Count what a step did."""
        if isinstance(item, Ready):
            return
        metrics, step = self._metrics, item.step
        if self._num_tokens == 0:
            self._first_at = time.perf_counter()
            waited = self._first_at - self._arrived_at
            metrics.first_token.observe(waited)
            metrics.queue.observe(max(0.0, waited - item.seconds))
        self._num_tokens += len(step.tokens)
        metrics.generation_tokens.inc(len(step.tokens))
        if not item.is_prefill:
            metrics.rows.observe(1 + len(step.draft))
            metrics.draft_seconds.inc(step.draft_seconds)
            metrics.saved.inc(item.seconds_saved)
        if step.draft:
            metrics.drafts.inc()
            metrics.draft_tokens.inc(step.draft.num_guesses)
            metrics.accepted_tokens.inc(step.num_accepted)
            for position in range(step.num_accepted):
                metrics.accepted_at[min(position, POSITIONS - 1)].inc()
        if item.finish is not None:
            metrics.prompt_tokens.inc(item.finish.num_prompt_tokens)
            metrics.finished(item.finish.reason)

    def end(self, error: Exception | None) -> None:
        """The request has ended."""
        now = time.perf_counter()
        if error is None:
            self._metrics.latency.observe(now - self._arrived_at)
            if self._num_tokens > 1:
                self._metrics.token.observe((now - self._first_at) / (self._num_tokens - 1))
        elif isinstance(error, Stopped):
            self._metrics.failed("abort")
        else:
            self._metrics.failed("timeout" if isinstance(error, TimeoutError) else "error")


class _Prefixes:
    """What was kept of prompts, and how much of later ones it was."""

    def __init__(self, model_name: str, prefixes: Prefixes) -> None:
        self._labels, self._prefixes = {LABEL: model_name}, prefixes

    def collect(self) -> Iterator[Metric]:
        """The three metrics."""
        asked = "Tokens of prompts that were looked for among those that were kept."
        for name, about, value in (
            ("queries", asked, self._prefixes.num_asked),
            ("hits", "Tokens of prompts that were kept.", self._prefixes.num_hits),
        ):
            counter = CounterMetricFamily(f"foretoken:prefix_cache_{name}", about, labels=list(self._labels))
            counter.add_metric(list(self._labels.values()), value)
            yield counter
        size = GaugeMetricFamily("foretoken:prefix_cache_bytes", "Memory of what is kept.", labels=list(self._labels))
        size.add_metric(list(self._labels.values()), self._prefixes.nbytes)
        yield size


class _Memory:
    """Bytes that the namespaces of each owner take; whose they are is hashed with a secret of this process."""

    def __init__(self, memories: Namespaces) -> None:
        self._memories, self._secret = memories, secrets.token_bytes(16)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The one metric."""
        sums: dict[str, int] = {}
        for name, num_bytes in self._memories.sizes().items():
            owner = name.partition("/")[0]
            sums[owner] = sums.get(owner, 0) + num_bytes
        family = GaugeMetricFamily("foretoken:memory_bytes", "Memory of a key's namespaces.", labels=["owner"])
        for owner, num_bytes in sums.items():
            digest = hashlib.blake2b(owner.encode(), key=self._secret, digest_size=4)
            family.add_metric([digest.hexdigest()], num_bytes)
        yield family
