"""vLLM in this process. Importing this module imports vLLM."""

from typing import Any

from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.vllm_causallms import VLLM
from typing_extensions import override
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from eval.responses.process_guard import ProcessGuard
from eval.responses.request_engine import RequestEngine

_SHUTDOWN_SECONDS = 60.0  # until vLLM's processes are killed


class VLLMEngine(RequestEngine, VLLM):
    """The harness's vLLM model, with requests that are added while others run.

    Tokenization, generation arguments, stop sequences and log-likelihoods are the harness's.
    """

    def __init__(self, **arguments: Any) -> None:
        self._stops: dict[str, list[str]] = {}
        self.guard = ProcessGuard()
        try:
            VLLM.__init__(self, **arguments)
        except BaseException:  # including Ctrl-C: an engine that was loading would keep its memory
            self.guard.close()
            raise
        self.guard.started()
        self.max_num_seqs = self.model.llm_engine.vllm_config.scheduler_config.max_num_seqs

    @override
    def seed_key(self, prompt: str) -> str:
        return repr(self.tok_encode(prompt))

    @override
    def add_request(self, request_id: int, prompt: str, gen_kwargs: dict[str, Any], seed: int) -> None:
        eos = self.tokenizer.decode(self.eot_token_id)
        arguments, stops, max_tokens = self.modify_gen_kwargs(gen_kwargs, eos=eos)
        parameters = SamplingParams(
            max_tokens=max_tokens, stop=stops, seed=seed, output_kind=RequestOutputKind.FINAL_ONLY, **arguments
        )
        ids = self.tok_encode(prompt)
        self._stops[str(request_id)] = stops
        self.model.llm_engine.add_request(str(request_id), TokensPrompt(prompt_token_ids=ids), parameters)

    @override
    def step(self) -> dict[int, str]:
        finished = [output for output in self.model.llm_engine.step() if output.finished]
        return {
            int(output.request_id): postprocess_generated_text(
                output.outputs[0].text, self._stops.pop(output.request_id), None
            )
            for output in finished
        }

    def _model_generate(self, requests: Any, generate: bool = False, sampling_params: Any = None) -> Any:
        # For log-likelihoods. The harness asks for vLLM's progress bar, which divides by zero under TQDM_DISABLE.
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in requests]
        parameters = SamplingParams(temperature=0, prompt_logprobs=1, max_tokens=1, detokenize=False)
        return self.model.generate(prompts, sampling_params=parameters, use_tqdm=False)

    def close(self) -> None:
        """Shut vLLM's processes down and wait until they have ended."""
        try:
            self.model.llm_engine.engine_core.shutdown(timeout=_SHUTDOWN_SECONDS)
        finally:
            self.guard.close()
