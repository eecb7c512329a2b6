"""One device's share of a step: launch the forward pass, then sample. Two calls, so that grammars can work in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from core.batch import Bitmasks, StepPlan, StepResult
from core.interfaces.attention import AttentionBackend
from core.interfaces.executor import StepTicket
from core.interfaces.model import Model
from core.kernels import dispatch
from core.kernels.compilers import Compilers
from core.kernels.launch import fixed_order
from core.messages import Logprobs
from core.progress import ProgressLine
from core.runner.graph_sizes import decode_sizes
from core.runner.input_batch import InputBatch
from core.runner.pooling import Pooler
from core.sampling.logprobs import gather_logprobs, to_message
from core.sampling.rows import Needs, SamplingRows
from core.sampling.sampler import Sampler

PROMPT_LOGPROBS_ROWS = 256
"""Prompt positions whose logits are in memory at a time."""


class Ticket:
    """A step's results on their way to the host."""

    def __init__(self, runner: ModelRunner, plan: StepPlan, tensors: dict[str, torch.Tensor], asked: list[int]) -> None:
        self._plan, self._asked = plan, asked
        self._requests = [runner.sampling.requests[int(r)] for r in plan.rows[plan.samples]] if asked else []
        self._event: Any = None
        if runner.device.type == "cuda":
            # only a copy into pinned memory leaves the host free
            self._tensors = {
                k: torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for k, t in tensors.items()
            }
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._tensors = tensors
        self.prompt_logprobs: dict[int, list[Logprobs]] = {}
        self.pooled_rows: list[int] = []
        """Whose vectors are in the tensor "pooled"."""

    def result(self) -> StepResult:
        if self._event is not None:
            self._event.synchronize()
        tokens = self._tensors["tokens"].numpy().astype(np.int32)
        rows = self._plan.rows[self._plan.samples]
        finite = self._tensors["finite"].numpy()
        errors = {}
        if not finite.all():
            errors = _errors(rows, finite)
        embeddings = {}
        for row, vector in zip(
            self.pooled_rows, self._tensors["pooled"].numpy() if self.pooled_rows else (), strict=True
        ):
            embeddings[row] = vector
            if not np.isfinite(vector).all():
                errors[row] = "the model gave no finite hidden states for this sequence"
        logprobs = {}
        if self._asked:
            ids, values, ranks = (self._tensors[k].tolist() for k in ("ids", "values", "ranks"))
            for j, i in enumerate(self._asked):
                request = self._requests[i]
                assert request is not None
                logprobs[int(rows[i])] = to_message(ids[j], values[j], ranks[j], request.params.logprobs or 0)
        return StepResult(tokens, logprobs, self.prompt_logprobs, errors, embeddings)


class ChosenTicket:
    """The results of a step that chose its tokens itself."""

    def __init__(self, plan: StepPlan, chosen: np.ndarray) -> None:
        """chosen: int32 [2, R], tokens and whether their logits are finite"""
        self._plan, self._chosen = plan, chosen

    def result(self) -> StepResult:
        tokens, finite = self._chosen
        return StepResult(tokens, errors={} if finite.all() else _errors(self._plan.rows, finite))


def _errors(rows: np.ndarray, finite: np.ndarray) -> dict[int, str]:
    broken = rows[finite == 0].tolist()
    return dict.fromkeys(broken, "the model gave no finite logits for this sequence")


class ModelRunner:
    """Runs plans on one device: inputs, forward pass, sampling."""

    def __init__(
        self,
        model: Model,
        backend: AttentionBackend,
        caches: list,
        batch: InputBatch,
        sampling: SamplingRows,
        fixed_order: bool = False,
    ) -> None:
        """fixed_order: the same bits for a request whatever else is in its steps."""
        self._fixed_order = fixed_order
        self.model, self.backend, self.caches, self.batch, self.sampling = model, backend, caches, batch, sampling
        self.device = batch.device
        self.sampler = Sampler(sampling, batch.token_ids)
        self.pooler = Pooler(batch)
        self._launched: tuple[StepPlan, torch.Tensor, torch.Tensor | None] | None = None
        """The plan, its hidden states and, if a graph made them, its logits."""
        self._has_chosen = False
        """The launched step has chosen its tokens already."""
        self.graphs: Any = None
        """core.runner.graphs.StepGraphs, once captured, or core.runner.recordings.StepRecordings"""

    @torch.inference_mode()
    def warm_up(
        self,
        max_tokens: int,
        max_graph_tokens: int,
        free_tokens: int,
        shared_prefixes: bool,
        phase: Callable[[str], None],
        compilers: Compilers | None = None,
    ) -> int:
        """Compile the kernels of steps of up to `max_tokens`; capture those up to `max_graph_tokens` in CUDA graphs.

        max_graph_tokens 0: no graphs. free_tokens: see StepGraphs. compilers: see core/kernels/launch.py. -> how many graphs
        """
        from core.kernels.launch import compiling
        from core.runner.graphs import StepGraphs

        with fixed_order(self._fixed_order):
            rows = self.batch
            graphs = None
            if max_graph_tokens:
                graphs = StepGraphs(
                    self.model,
                    self.backend,
                    self.caches,
                    rows.token_ids,
                    rows.block_table,
                    rows.block_size,
                    max_graph_tokens,
                    shared_prefixes,
                    free_tokens,
                )
            # those that choose tokens and read prompts take the longest to compile
            jobs = self._eager_steps(max_tokens) + ([] if graphs is None else graphs.compilations())
            with compiling(compilers):
                for job in jobs:
                    job()
            if compilers is not None:
                compilers.finish()
            torch.cuda.empty_cache()
            rows.token_ids.zero_()
            phase("compile kernels")
            if graphs is None:
                return 0
            with ProgressLine("capturing graphs") as progress:
                count = graphs.capture(progress)
            phase("capture graphs")
            self.graphs = graphs
            return count

    def _eager_steps(self, max_tokens: int) -> list[Callable[[], object]]:
        """Steps that no graph serves: long prompts, new and continued, and every way to sample."""
        longest = self.batch.token_ids.shape[1] - 1
        most = min(max_tokens, longest)

        def step(count: int, computed: int) -> torch.Tensor:
            plan = StepPlan(
                step=0,
                rows=np.zeros(1, np.int32),
                num_scheduled=np.array([count], np.int32),
                num_computed=np.array([computed], np.int32),
                samples=np.ones(1, bool),
            )
            batch = self.batch.forward_batch(plan, self.caches)
            self.backend.plan(batch)
            return self.model.forward(batch)

        def choose(random: bool, masked: bool) -> None:
            logits = self.model.logits(step(min(24, most), 0)[-1:])
            words = np.full((1, -(-logits.shape[1] // 32)), -1, np.int32)
            masks = Bitmasks(np.zeros(1, np.int64), words) if masked else None
            needs = np.array([Needs.RANDOM if random else 0])
            self._sample_plain(logits, np.zeros(1, np.int64), np.zeros(1, np.int32), needs, masks)

        # most - 8: of a prompt that the library's attention takes, something is left for the kernel here
        sizes = {(most, 0), (max(1, most - 8), 0), (min(1024, most), 0)}
        sizes |= {(min(n, longest - 16), 16) for n in (max_tokens, 1024, 40) if longest > 32}

        def head() -> None:
            """A graph holds the head of few requests only."""
            hidden = step(1, 0)
            for count in decode_sizes(self.batch.token_ids.shape[0]):
                self.model.logits(hidden.expand(count, -1))

        ways = ((True, False), (True, True), (False, False), (False, True))
        jobs: list[Callable[[], object]] = [lambda w=w: choose(*w) for w in ways]  # type: ignore[misc]
        jobs += [lambda s=s: step(*s) for s in sorted(sizes, reverse=True)]  # type: ignore[misc]
        return [*jobs, head]

    def launch(self, plan: StepPlan) -> None:
        """Queue the forward pass of a plan."""
        self._has_chosen = False
        if plan.all_decode and self.batch.on_host and self.graphs is not None and self._replay(plan):
            return
        with torch.inference_mode(), fixed_order(self._fixed_order):
            self._launch(plan)

    def _replay(self, plan: StepPlan) -> bool:
        """Run a step that is recorded, if it is, with no operation of torch: each would cost a percent of a small model's step."""
        self.batch.apply(plan)
        choose = not self.sampling.needs[plan.rows].any()
        recording = self.graphs.replay(plan, choose)
        if recording is None:
            return False
        self._launched, self._has_chosen = (plan, recording.hidden, recording.logits), choose
        return True

    def _launch(self, plan: StepPlan) -> None:
        if plan.new_rows:
            self.sampling.enter(plan.new_rows)
        self.batch.apply(plan)
        if len(plan.block_copies):
            source, target = (self.batch.send(plan.block_copies[:, i].astype(np.int64)) for i in (0, 1))
            for cache in self.caches:
                for tensor in cache:
                    # torch copies no rows of 8-bit floats
                    words = tensor.view(torch.uint8) if tensor.itemsize == 1 else tensor
                    words.index_copy_(0, target, words.index_select(0, source))
        all_states = not plan.all_decode and bool((self.sampling.needs[plan.rows] & Needs.ALL_STATES).any())
        replayed = None if self.graphs is None else self.graphs.run(plan, all_states)
        if replayed is not None:
            self._launched = (plan, *replayed)
            return
        batch = self.batch.forward_batch(plan, self.caches)
        batch.wanted = self._wanted(plan)
        self.backend.plan(batch)
        self._launched = (plan, self.model.forward(batch), None)

    def _wanted(self, plan: StepPlan) -> torch.Tensor | None:
        """The last tokens of what is sampled, or of every row; None: all tokens' hidden states are needed."""
        needs = self.sampling.needs[plan.rows]
        if plan.num_samples == plan.num_tokens or (needs & Needs.ALL_STATES).any():
            return None
        last = np.cumsum(plan.num_scheduled, dtype=np.int64) - 1
        if (needs & Needs.POOLING).any():
            return self.batch.send(last)
        return self.batch.send(last[plan.samples] if plan.samples.any() else last[-1:])

    def sample(self, masks: Bitmasks | None) -> StepTicket:
        """Choose the next tokens of the launched plan; they stand in the rows before this returns to the device."""
        if self._has_chosen and masks is None and self._launched is not None:
            plan, self._launched = self._launched[0], None
            return ChosenTicket(plan, self.graphs.chosen(len(plan.rows)))
        with torch.inference_mode(), fixed_order(self._fixed_order):
            return self._results(masks)

    def _results(self, masks: Bitmasks | None) -> Ticket:
        assert self._launched is not None, "sample() before launch()"
        plan, hidden, ready = self._launched
        self._launched = None
        ends = np.cumsum(plan.num_scheduled, dtype=np.int64)
        if hidden.shape[0] == len(plan.rows):
            ends = np.arange(1, len(plan.rows) + 1)  # of each row, its last token's state alone
        needs = self.sampling.needs[plan.rows]
        tensors, asked = self._sample(plan, hidden, ready, ends, needs, masks)
        if not (needs & Needs.STATES).any():
            return Ticket(self, plan, tensors, asked)
        pools = np.nonzero(needs & Needs.POOLING)[0].tolist()
        requests = [(i, r) for i in pools if (r := self.sampling.requests[int(plan.rows[i])]) is not None]
        pooled_rows, vectors = self.pooler.pool(plan, hidden, ends, requests)
        if vectors is not None:
            tensors["pooled"] = vectors
        ticket = Ticket(self, plan, tensors, asked)
        ticket.pooled_rows = pooled_rows
        ticket.prompt_logprobs = self._prompt_logprobs(plan, hidden, ends)
        return ticket

    def _sample(
        self,
        plan: StepPlan,
        hidden: torch.Tensor,
        ready: torch.Tensor | None,
        ends: np.ndarray,
        needs: np.ndarray,
        masks: Bitmasks | None,
    ) -> tuple[dict[str, torch.Tensor], list[int]]:
        """-> the Ticket's tensors, and which of the sampled rows asked for log probabilities. ready: logits of all rows"""
        sampled = plan.samples
        rows = plan.rows[sampled].astype(np.int64)
        if len(rows) == 0:
            return {"tokens": torch.empty(0, dtype=torch.int64), "finite": torch.empty(0, dtype=torch.bool)}, []
        positions = (plan.num_computed + plan.num_scheduled)[sampled]
        if len(rows) != hidden.shape[0]:
            last = self.batch.send(ends[sampled] - 1)
            hidden = hidden.index_select(0, last)
            ready = None if ready is None else ready.index_select(0, last)
        logits = self.model.logits(hidden) if ready is None else ready
        plain = not (needs[sampled] & (Needs.EDITS | Needs.PENALTIES | Needs.LOGPROBS)).any()
        if plain and dispatch.on_gpu(logits):
            return self._sample_plain(logits, rows, positions, needs[sampled], masks), []
        if plain and masks is None and not (needs[sampled] & Needs.RANDOM).any() and dispatch.on_cpu(logits):
            tokens, finite = dispatch.greedy(logits, plan.rows[sampled], positions, self.batch.token_ids)
            return {"tokens": tokens, "finite": finite}, []
        if plain and dispatch.on_cpu(logits):
            wishes = self.sampling.floats, self.sampling.top_k, self.sampling.seeds
            bits = None if masks is None else (masks.sample_indices, masks.bits)
            rows_of = plan.rows[sampled]
            tokens, finite = dispatch.sample(logits, rows_of, positions, self.batch.token_ids, wishes, bits)
            return {"tokens": tokens, "finite": finite}, []
        rows_device = self.batch.send(rows)
        logits = logits.float()
        finite = logits.amax(-1).isfinite()
        asked = np.nonzero(needs[sampled] & Needs.LOGPROBS)[0]
        raw = logits.index_select(0, self.batch.send(asked)).clone() if len(asked) else None
        tokens = self.sampler(logits, rows, rows_device, positions, masks)
        self.batch.token_ids[rows_device, self.batch.send(positions.astype(np.int64))] = tokens.int()
        tensors = {"tokens": tokens, "finite": finite}
        if raw is not None:
            params = [r.params for i in asked if (r := self.sampling.requests[int(rows[i])])]
            most = max(p.logprobs or 0 for p in params)
            chosen = tokens.index_select(0, self.batch.send(asked))
            tensors["ids"], tensors["values"], tensors["ranks"] = gather_logprobs(raw, chosen, most)
        return tensors, asked.tolist()

    def _sample_plain(
        self, logits: torch.Tensor, rows: np.ndarray, positions: np.ndarray, needs: np.ndarray, masks: Bitmasks | None
    ) -> dict[str, torch.Tensor]:
        """Everything but edits, penalties and logprobs: one kernel, which writes the tokens into their rows too."""
        from core.kernels.sampling import sample

        count = len(rows)
        lines = np.zeros(count, np.int64)  # line 0 allows everything
        if masks is not None:
            lines[masks.sample_indices] = 1 + np.arange(len(masks.bits))
        rows_device, places, lines_device = self.batch.send_together(rows, positions, lines)
        allowed = None
        if masks is not None:
            words = masks.lines
            if words is None:
                words = np.concatenate([np.full((1, masks.bits.shape[1]), -1, np.int32), masks.bits])
            allowed = (lines_device, self.batch.send(words))
        wishes = self.sampling
        tokens, finite = sample(
            logits,
            rows_device,
            wishes.floats,
            wishes.top_k,
            wishes.seeds,
            places,
            is_random=bool((needs & Needs.RANDOM).any()),
            masks=allowed,
            token_ids=self.batch.token_ids,
        )
        return {"tokens": tokens, "finite": finite}

    def _prompt_logprobs(self, plan: StepPlan, hidden: torch.Tensor, ends: np.ndarray) -> dict[int, list[Logprobs]]:
        """For rows that ask: each prompt token of this chunk, but the prompt's first, given those before it."""
        found: dict[int, list[Logprobs]] = {}
        for i in np.nonzero(self.sampling.needs[plan.rows] & Needs.PROMPT_LOGPROBS)[0].tolist():
            row = int(plan.rows[i])
            request = self.sampling.requests[row]
            assert request is not None
            first = int(plan.num_computed[i])
            count = min(int(plan.num_scheduled[i]), len(request.prompt_token_ids) - 1 - first)
            if count <= 0 or request.num_preemptions and request.output_token_ids:
                continue
            begin = int(ends[i] - plan.num_scheduled[i])
            num_top = request.params.prompt_logprobs or 0
            chosen = self.batch.token_ids[row, first + 1 : first + 1 + count].long()
            found[row] = []
            # in pieces: the logits of a whole prompt may be larger than the model
            for at in range(0, count, PROMPT_LOGPROBS_ROWS):
                piece = slice(begin + at, begin + min(at + PROMPT_LOGPROBS_ROWS, count))
                logits = self.model.logits(hidden[piece]).float()
                mine = chosen[at : at + PROMPT_LOGPROBS_ROWS]
                ids, values, ranks = (t.tolist() for t in gather_logprobs(logits, mine, num_top))
                found[row] += [to_message(ids[j], values[j], ranks[j], num_top) for j in range(len(ids))]
        return found
