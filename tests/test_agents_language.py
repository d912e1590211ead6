"""Agents that ask a language model: bounded prompts, mistakes of the model, refusals, limits, and a paid reply."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agents_world import World, decide, stopped
from tests.language_models import RuleModel, asking_agent, engineer_answer, opro_answer, prompt_of
from tests.scripted_endpoint import Answer, Call, Refused, Truncated, count_tokens
from virtualmle.agents.base import SKIPPED, Agent, Finalize, Outcome, ReadMemory, Reflect, RunTrial, Sweep
from virtualmle.agents.chat import ChatAgent, result_texts
from virtualmle.agents.conversation import Conversation
from virtualmle.agents.digest import DIGEST_LENGTH, state_digest
from virtualmle.agents.engineer import Engineer
from virtualmle.agents.hybrid import Hybrid, is_model_trial
from virtualmle.agents.language import MAX_MISTAKES, MAX_READS, MAX_REFUSED, LanguageAgent
from virtualmle.agents.llm.messages import LanguageModel, Message, ToolCall
from virtualmle.agents.opro import Opro
from virtualmle.agents.opro_prompt import MAX_PAIRS, meta_prompt, parse_solution
from virtualmle.agents.prompt import SYSTEM_LENGTH, step_text, system_text
from virtualmle.agents.random_search import RandomSearch
from virtualmle.agents.registry import AGENTS, AgentOptions
from virtualmle.agents.verbs import VERBS, CallError, actions_of, tool_specs
from virtualmle.cli.options import AGENT_NAMES
from virtualmle.data.errors import ConfigError, CostCapError, LanguageModelError

RUN = Call("run_trial", {"changes": {"lr": 0.001}})
REFLECT = Call("write_reflection", {"helped": "yes", "dimension": "optimisation", "lesson": "It helped."})


class ScriptedModel(RuleModel):
    """Gives the answers of a list, in order; an exception is raised."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._left = list(answers)
        super().__init__(self._next)

    def _next(self, _: str, __: str) -> Answer:
        answer = self._left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def last_prompt(self) -> str:
        return self.asked[-1].messages[-1].text


def played(trials: int, *, reflected: bool = True, **options: object) -> World:
    """A world after `trials` trials of the engineer."""
    world = World(trials_max=100, **options)  # type: ignore[arg-type]
    while len(world.trials) < trials or (reflected and world.situation.state.pending_reflection):
        world.act(Engineer(0).act(world.situation))
    return world


def test_a_prompt_stays_bounded_however_long_the_session_is() -> None:
    world = played(60)
    for handle in ("t001", "t059"):
        world.outcomes.append(Outcome(ReadMemory("trial", trial=handle), "x" * 9000))
    world.outcomes += [Outcome(RunTrial({"lr": 1}), "out of range, because " * 99, refused=True)] * 9
    situation = world.situation
    assert len(state_digest(situation)) <= DIGEST_LENGTH
    assert len(step_text(situation, ["mistake " * 500])) < DIGEST_LENGTH + 9500
    long = replace(situation.brief, profile={f"feature{i}": i for i in range(999)}, rules=["a rule " * 99] * 9)
    assert len(system_text(long)) <= SYSTEM_LENGTH


def test_the_digest_shows_the_incumbent_and_the_newest_trials_of_a_long_session() -> None:
    situation = played(60).situation
    digest = state_digest(situation)
    assert f"incumbent {situation.state.incumbent}" in digest and "t060" in digest and "t001" not in digest


def test_every_knob_has_one_line_with_its_values_and_its_default() -> None:
    text = system_text(World().situation.brief)
    assert "\nlr: 1e-05..0.01 log = 0.0003\n" in text and "\nbatch_size: 32..2048 int log = 256\n" in text
    assert "\ntie_embeddings: true|false = false\n" in text and "\nposition: absolute|" in text
    assert all(f"\n{knob.name}: " in text for knob in World().situation.brief.knobs)
    assert "\ntransition_window: 1..10 int = 1 *\n" in text  # transition_weight is 0


def test_the_plain_default_and_waiting_cost_no_call() -> None:
    model = ScriptedModel()
    world = World()
    (first,) = decide(LanguageAgent(model), world.situation)
    assert isinstance(first, RunTrial) and not first.changes
    world.running = "t001"
    decide(LanguageAgent(model), world.situation)
    assert not model.asked


def test_reflection_and_next_trial_come_in_one_reply_as_two_calls_or_as_one() -> None:
    situation = played(1, reflected=False).situation
    one_call = Call("run_trial", {**RUN.arguments, "reflection": dict(REFLECT.arguments)})  # type: ignore[dict-item]
    for calls in ([REFLECT, RUN], [one_call]):
        reflect, run = decide(LanguageAgent(ScriptedModel(Answer(calls=calls))), situation)
        assert isinstance(reflect, Reflect) and (reflect.trial, reflect.lesson) == ("t001", "It helped.")
        assert isinstance(run, RunTrial) and run.changes == {"lr": 0.001}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(Answer("I would raise lr."), "no tool call", id="no call"),
        pytest.param(Answer(calls=[Call("run_trial", '{"changes": {"lr"')]), "no JSON object", id="malformed"),
        pytest.param(Truncated(calls=[RUN]), "cut off", id="truncated"),
        pytest.param(Refused(), "you refused", id="refusal"),
        pytest.param(Answer(calls=[Call("delete_all", {})]), "no tool 'delete_all'", id="unknown tool"),
        pytest.param(Answer(calls=[Call("run_trial", {"knobs": {}})]), "changes: Field required", id="wrong argument"),
        pytest.param(Answer(calls=[RUN] * 9), "at most 4", id="too many"),
        pytest.param(Answer(calls=[REFLECT]), "written already", id="nothing to reflect on"),
    ],
)
def test_a_reply_that_cannot_be_executed_is_answered_with_the_reason(answer: Answer, told: str) -> None:
    model = ScriptedModel(answer, Answer(calls=[RUN]))
    (action,) = decide(LanguageAgent(model), played(1).situation)
    assert isinstance(action, RunTrial) and len(model.asked) == 2
    assert told in model.last_prompt


def test_too_many_mistakes_in_a_row_end_the_run_and_a_later_run_asks_anew() -> None:
    situation = played(1).situation
    model = ScriptedModel(*[Answer("Hm.")] * MAX_MISTAKES, Answer(calls=[RUN]))
    with pytest.raises(LanguageModelError, match="5 replies in a row .*no tool call.*resume"):
        decide(LanguageAgent(model), situation)
    assert isinstance(decide(LanguageAgent(model), situation)[0], RunTrial)


def test_what_the_server_refused_is_in_the_next_prompt_and_counted() -> None:
    world = played(1)
    world.outcomes.append(Outcome(RunTrial({"lr": 7}), "lr=7 is out of range", refused=True))
    world.outcomes.append(Outcome(RunTrial({"lr": 8}), SKIPPED, refused=True))
    model = ScriptedModel(Answer(calls=[RUN]))
    decide(LanguageAgent(model), world.situation)
    assert "- lr=7: lr=7 is out of range" in model.last_prompt
    world.outcomes += [Outcome(RunTrial({"lr": 7}), "lr=7 is out of range", refused=True)] * (MAX_REFUSED - 1)
    with pytest.raises(LanguageModelError, match="refused 10 calls .*lr=7 is out of range"):
        decide(LanguageAgent(model), world.situation)


def test_memory_can_be_read_a_few_times_and_then_a_trial_is_due() -> None:
    world = played(1)
    model = ScriptedModel(Answer(calls=[Call("read_memory", {"view": "trajectory"})]), *[Answer(calls=[RUN])] * 2)
    (read,) = decide(LanguageAgent(model), world.situation)
    assert read == ReadMemory("trajectory")
    world.outcomes += [Outcome(read, '{"trials": "all of them"}')] * MAX_READS
    decide(LanguageAgent(model), world.situation)
    assert "all of them" in model.last_prompt
    assert "read_memory" not in {tool.name for tool in model.asked[-1].tools}


def test_sweep_is_offered_if_the_server_has_it() -> None:
    situation = played(1).situation
    call = Call("sweep", {"settings": [{"transition_weight": 2}, {"transition_weight": 4}], "base": "t001"})
    able = replace(situation, brief=replace(situation.brief, tools=frozenset({"sweep"})))
    (action,) = decide(LanguageAgent(ScriptedModel(Answer(calls=[call]))), able)
    assert action == Sweep(({"transition_weight": 2}, {"transition_weight": 4}), "t001")
    with pytest.raises(CallError, match="no tool 'sweep' now"):
        actions_of([ToolCall("1", "sweep", {})], situation, ["run_trial"])


def test_the_step_limit_ends_a_run() -> None:
    world = played(1)
    agent = LanguageAgent(ScriptedModel(*[Answer(calls=[RUN])] * 3), max_steps=2)
    for _ in range(2):
        decide(agent, world.situation)
    with pytest.raises(LanguageModelError, match="answered 2 times.*--max-steps"):
        decide(agent, world.situation)


def test_arguments_are_read_leniently() -> None:
    situation = played(1, reflected=False).situation
    call = ToolCall("1", "run_trial", {"session": "s", "changes": '{"lr": 0.002}', "base": None, "hypothesis": None})
    assert actions_of([call], situation, ["run_trial"]) == [RunTrial({"lr": 0.002})]


def test_schemas_have_no_references_and_no_nulls_and_name_the_required_arguments() -> None:
    specs = {spec.name: dict(spec.parameters) for spec in tool_specs(list(VERBS))}
    text = json.dumps(specs)
    assert "$ref" not in text and "null" not in text and "anyOf" not in text and len(text) < 3600
    assert specs["write_reflection"]["required"] == ["helped", "dimension", "lesson"]


def test_the_model_is_asked_once_for_the_cognition_summary() -> None:
    situation = stopped(played(3, reflected=False).situation)
    summary = Call("finalize", {"cognition_summary": "Learnt a lot.", "rules": [{"kind": "insight", "statement": "x"}]})
    reflect, close = decide(LanguageAgent(ScriptedModel(Answer(calls=[summary]))), situation)
    assert isinstance(reflect, Reflect)  # computed, because the model gave none
    assert isinstance(close, Finalize) and (close.summary, close.rules[0].statement) == ("Learnt a lot.", "x")


@pytest.mark.parametrize(
    "answer", [Answer("Done."), Answer(calls=[RUN]), LanguageModelError("no connection"), CostCapError("the cap")]
)
def test_without_a_summary_of_the_model_the_computed_one_is_used_and_says_so(answer: Answer | Exception) -> None:
    actions = decide(LanguageAgent(ScriptedModel(answer)), stopped(played(3).situation))
    (close,) = actions
    assert isinstance(close, Finalize) and "language model gave none" in close.note
    assert close.summary.startswith("(The Cognition Summary is computed") and "Best validation" in close.summary


def test_a_refused_summary_is_not_asked_for_again() -> None:
    situation = stopped(played(3).situation)
    summary = Call("finalize", {"cognition_summary": "Good.", "rules": [{"kind": "avoid", "statement": "x"}]})
    agent = LanguageAgent(ScriptedModel(Answer(calls=[summary])))
    (first,) = decide(agent, situation)
    refused = replace(situation, outcomes=(*situation.outcomes, Outcome(first, "rule 1 has no condition", True)))
    (second,) = decide(agent, refused)
    assert isinstance(second, Finalize) and "rule 1 has no condition" in second.note


def test_a_session_whose_money_is_spent_ends_with_the_computed_summary() -> None:
    (close,) = decide(LanguageAgent(ScriptedModel(CostCapError("the cap is reached"))), played(3).situation)
    assert isinstance(close, Finalize) and "the cap is reached" in close.note
    world = World(lambda _: float("nan"))
    world.execute(decide(LanguageAgent(ScriptedModel()), world.situation))
    with pytest.raises(CostCapError):  # nothing has finished, so there is nothing to select
        decide(LanguageAgent(ScriptedModel(CostCapError("the cap is reached"))), world.situation)


@pytest.mark.parametrize("make", [LanguageAgent, ChatAgent])
def test_a_paid_reply_is_acted_upon_by_the_next_process_without_another_call(
    make: Callable[[LanguageModel], Agent],
) -> None:
    world = played(2, reflected=False)
    model = ScriptedModel(Answer(calls=[REFLECT, RUN]))
    intended = decide(make(model), world.situation)
    assert decide(make(model), world.situation) == intended  # killed before both
    world.act(intended[0])
    assert decide(make(model), world.situation) == [intended[1]]  # killed between them
    assert len(model.asked) == 1


class Talks:
    """Processes that share the conversations in a folder."""

    def __init__(self, folder: Path, model: LanguageModel) -> None:
        self.folder, self.model = folder, model

    def process(self) -> ChatAgent:
        return ChatAgent(self.model, sessions=self.folder)

    @property
    def messages(self) -> list[Message]:
        return Conversation(self.folder / "s" / "chat.jsonl").messages


def test_a_conversation_goes_on_with_the_results_in_another_process(tmp_path: Path) -> None:
    world = played(1, reflected=False)
    second = Call("run_trial", {"changes": {"dropout": 0.3}})
    talks = Talks(tmp_path, ScriptedModel(Answer("First.", [REFLECT, RUN]), Answer("Next.", [second])))
    agent = talks.process()
    world.execute(decide(agent, world.situation))
    resumed = talks.process()  # the calls have no results yet in the file: they are given again
    assert len(decide(resumed, world.situation)) == 2
    decide(agent, world.situation)
    roles = [message.role for message in talks.messages]
    assert roles == ["system", "user", "assistant", "tool", "tool", "user", "assistant"]
    assert talks.messages[-1].text == "Next."


def test_a_line_that_a_killed_process_left_unfinished_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    Conversation(path).say(Message("user", "hello “you”"), Message("assistant", "", (ToolCall("1", "f", {"a": 1}),)))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    talk = Conversation(path)
    assert [message.role for message in talk.messages] == ["user", "assistant"] and path.read_bytes() == whole
    talk.say(Message("tool", "done", call_id="1"))
    assert Conversation(path).messages == talk.messages


def test_the_results_of_a_reply_go_to_their_calls() -> None:
    calls = [ToolCall("1", "write_reflection", {}), ToolCall("2", "run_trial", {}), ToolCall("3", "read_memory", {})]
    reflect = Reflect("t001", "yes", "scoring", "x")
    run, read = RunTrial({}), ReadMemory("trial")
    outcomes = [Outcome(reflect, "supported"), Outcome(run, "kept"), Outcome(read, "all")]
    assert result_texts(calls, outcomes) == ["supported", "kept", "all"]
    assert result_texts(calls, outcomes[1:]) == ["nothing to do", "kept", "all"]
    assert result_texts(calls[1:], outcomes) == ["supported\nkept", "all"]


def test_the_prompt_of_the_chat_driver_grows_with_every_call_and_that_of_the_stateless_driver_does_not() -> None:
    def sizes(driver: str) -> list[int]:
        model = RuleModel(engineer_answer)
        agent = ChatAgent(model) if driver == "chat" else LanguageAgent(model)
        World(trials_max=30).play(agent)
        return [count_tokens(prompt_of(request)) for request in model.asked[:-1]]  # the last one has fewer tools

    stateless, chat = sizes("stateless"), sizes("chat")
    assert chat == sorted(chat) and chat[-1] > 3 * chat[0]
    assert max(stateless) < 1.7 * min(stateless) and max(stateless) < chat[-1] / 3
    assert sum(stateless) / len(stateless) < 0.6 * sum(chat) / len(chat)


def test_the_meta_prompt_has_the_best_pairs_in_ascending_order_and_then_the_instruction() -> None:
    pairs = [({"lr": i / 1000}, 0.01 * i) for i in range(30, 0, -1)]
    text = meta_prompt("sasrec", World().situation.brief.knobs, pairs)
    scores = [line for line in text.splitlines() if line.startswith("0.")]
    assert scores == [f"{0.01 * i:.4f}" for i in range(31 - MAX_PAIRS, 31)]
    assert text.index("[lr=0.03]") < text.index("different from all configurations above")
    assert text.endswith("in square brackets.")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("First [a=1]. Better: [lr=0.001, loss=bce, tie_embeddings=True]", {"lr": 0.001, "loss": "bce",
                                                                             "tie_embeddings": True}),
        ("[num_blocks = 2, position='rotary']", {"num_blocks": 2, "position": "rotary"}),
        ("[]", {}),
        ("lr=0.001", None),
        ("[raise lr]", None),
    ],
)  # fmt: skip
def test_a_solution_is_read_from_the_last_brackets(text: str, settings: dict[str, object] | None) -> None:
    assert parse_solution(text) == settings


def test_opro_asks_with_one_meta_prompt_in_a_step_at_temperature_one_and_shows_pairs_only() -> None:
    model = RuleModel(opro_answer)
    world = World(trials_max=22, reflection=False).play(Opro(model, RandomSearch(3)))
    assert len(world.trials) == 22 and not world.reflections
    prompts = [request.messages[0].text for request in model.asked]
    assert len(dict.fromkeys(prompts)) == 3  # 5 starting points, two steps of 8 solutions, and a third begun
    assert {request.temperature for request in model.asked} == {1.0} and not any(r.tools for r in model.asked)
    assert all(len(request.messages) == 1 for request in model.asked)


def test_opro_ends_when_the_model_proposes_nothing_new_and_stops_if_it_is_unreadable() -> None:
    situation = played(6).situation
    (close,) = decide(Opro(RuleModel(lambda *_: Answer("[]")), RandomSearch(0)), situation)
    assert isinstance(close, Finalize) and "nothing new" in close.note
    with pytest.raises(LanguageModelError, match="no configuration in square brackets"):
        decide(Opro(RuleModel(lambda *_: Answer("?")), RandomSearch(0)), situation)


def test_hybrid_asks_on_three_of_ten_trials_with_the_proposal_in_view() -> None:
    model = RuleModel(engineer_answer)
    world = World(trials_max=20).play(Hybrid(model, RandomSearch(0)))
    assert [request.step for request in model.asked] == [f"{n}.0" for n in (3, 6, 9, 13, 16, 19)]
    assert all("A Bayesian sampler proposes" in request.messages[-1].text for request in model.asked)
    assert len(world.trials) == 20 and is_model_trial(played(3).situation)


@pytest.mark.parametrize(
    "answer", [Answer("?"), Answer(calls=[Call("run_trial", {"changes": {"lr": 7}})]), CostCapError("the cap")]
)
def test_hybrid_runs_the_proposal_if_the_model_has_no_valid_choice(answer: Answer | Exception) -> None:
    situation = played(3).situation
    proposal = RandomSearch(0).act(situation)
    assert decide(Hybrid(ScriptedModel(answer), RandomSearch(0)), situation) == (proposal,)


def test_an_agent_that_asks_a_model_needs_one() -> None:
    with pytest.raises(ConfigError, match="--model"):
        AGENTS["llm"](AgentOptions())
    assert isinstance(asking_agent("llm", driver="chat"), ChatAgent)


def test_the_help_of_the_commands_names_all_agents() -> None:
    assert sorted(AGENT_NAMES) == sorted(AGENTS)
