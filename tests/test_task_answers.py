"""Given questions: what each task answers to questions written by hand, in every form, and what it refuses."""

import numpy as np
import pytest
import torch

from pezoo.errors import UserError
from pezoo.registry import list_tasks
from pezoo.task import IGNORE, Pairs, Task, make_task

ASKED = [
    ("addition", "95+7", "102"),
    ("addition", "5+999", "1004"),
    ("addition", "0+0", "0"),
    ("addition", "10 + 2", "12"),
    ("addition:order=lowest_first", "59+7", "201"),
    ("addition:order=lowest_first", "5+999", "4001"),
    ("addition:order=lowest_first", "0+01", "01"),
    ("aggregate:labels=3", "l1 l0 l2 l0 l1 l2 l2 l0 l0 QUERY l0", "4"),
    ("aggregate:ask=most:labels=3", "l1 l0 l2 l0 QUERY", "l0"),
    ("binary_addition", "001 2 01101", "010112"),
    ("binary_addition", "01", "012"),
    ("binary_multiplication", "001 2 01101", "00011012"),
    ("binary_multiplication", "1", "2"),
    ("bucket_sort", "40201", "00124"),
    ("chain_sum", "7-4+6-9+5", "5"),
    ("chain_sum", "0", "0"),
    ("compute_sqrt", "100101", "110"),
    ("copy", "3 12 3", "3 12 3"),
    ("copy:variant=random_twice", "3 12", "3 12 NEXT 3 12"),
    ("copy:variant=repeat_twice", "12 12 12", "12 12 12 12 12 12"),
    ("copy:variant=replace", "7 8 7 7 7", "8 8 8"),
    ("cycle_navigation", "0020", "3"),
    ("duplicate_string", "110", "110110"),
    ("even_pairs", "001110", "0"),
    ("flip_flop", "w1i0i1r1i0w0r", "______1_____0"),
    ("flip_flop", "w1 r1", "__1_"),
    ("induction", "3 S 7 1 5 S", "7"),
    ("lego", "v0 + 1 v1 - v0 v2 + v1 v2", "-"),
    ("lego", "v5 +1 v7 - v5 v7", "-"),
    ("lego:order=shuffled", "v2 - v1 v0 + 1 v1 - v0 v1", "-"),
    ("missing_duplicate_string", "0110 0210", "1"),
    ("missing_duplicate_string", "0210 0110 3", "1"),
    ("modular_arithmetic", "1+2*3", "2"),
    ("modular_arithmetic", "3", "3"),
    ("modular_arithmetic_brackets", "((4*2)-(-1))", "4"),
    ("modular_arithmetic_brackets", "(-1--3)", "2"),
    ("modular_arithmetic_brackets", "-2", "3"),
    ("mqar:n_pairs=2", "1 40 2 50 2 9 1 7", "_ _ _ _ 50 _ 40 _"),
    ("multi_key:n_digits=2:n_keys=2", "f0 k4 12 k7 34 f1 QUERY k7", "34"),
    ("multi_value:n_values=2", "f0 KEY 7 f3 KEY 1 QUERY", "71"),
    ("no_overlap:n_told=2", "f3 n3 p7 f0 n5 p2 QUERY r7", "n3"),
    ("no_overlap:n_told=2:direct=true", "n3 p7 n5 p2 QUERY p2", "n5"),
    ("odds_first", "00110101", "01110100"),
    ("parity", "01101", "NO"),
    ("parity_check", "1010100", "1"),
    ("passkey:n_digits=2", "f3 f1 KEY 42 f7 QUERY", "42"),
    ("polynomial", "-2 +3 x^2 -1 x^0", "1"),
    ("repeat_copy", "5 6 7 5 6 7", "_ _ _ 6 7 _"),
    ("repeat_copy", "5 6 7 5 6", "_ _ _ 6 7"),
    ("reverse:variant=back", "3 12", "12 3 NEXT 3 12"),
    ("reverse_string", "0010", "0100"),
    ("scan", "jump opposite left after walk twice", "WALK WALK LTURN LTURN JUMP"),
    ("scan:phrases=4", "walk and look after run and turn left", "RUN WALK LOOK LTURN"),
    ("solve_equation", "((4-x)+(-1))=0", "3"),
    ("solve_equation", "-x=2", "3"),
    ("sorting", "13 10 12 10", "10 10 12 13"),
    ("sorting:variant=multi_digit", "3501,42,700", "42,700,3501"),
    ("stack_manipulation", "0110422", "1102"),
    ("stack_manipulation", "12223", "02"),
    ("summation", "749", "0"),
    ("word_problem", "23145 21435 12345 23145", "23145 14235 14235 24315"),
    ("word_problem", "21354 12345 23145", "21354 21354 32154"),
    ("word_problem:group=S5", "23145 21345", "23145 13245"),
    ("word_problem:group=A4xZ5", "2143+3 2143+4", "2143+3 1234+2"),
    ("word_problem:group=Z60", "59 2 0", "59 1 1"),
    (
        "variable_tracking:n_hops=1",
        "f1 v0 = 3 v4 = 9 f0 v1 = v0 v2 = v4 QUERY 9",
        "v4 v2",
    ),
]
"""Task, question, answer: those of the docstrings, and the edges of each."""

PASSKEY = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\nThe grass is green. \n"
    "The pass key is 12345. Remember it. 12345 is the pass key.\nThe gra\n"
    "What is the pass key? The pass key is "
)

NO_QUESTIONS = [
    *(("addition", text) for text in ("95", "95+", "+95", "9+5+7", "05+7", "5+07")),
    *(("aggregate:labels=3", "l0 " * 8 + text) for text in ("l0 QUERY", "l1 QUERY 3", "QUERY l1 l0", "l0 l0 QUERY l0")),
    *(("aggregate:ask=most", text) for text in ("l0 l1 QUERY", "l0 l0", "QUERY", "l0 3 QUERY")),
    *(("addition:order=lowest_first", text) for text in ("59", "+59", "5+70", "50+7", "5+")),
    *(("binary_addition", text) for text in ("0101", "2011", "0112", "12021", "2")),
    ("binary_multiplication", "01201"[::2] + "2"),
    *(("copy:variant=repeat", text) for text in ("1 2", "1 1 2")),
    *(("copy:variant=replace", text) for text in ("1 2", "1 1 1", "1 2 1 2")),
    *(("chain_sum", text) for text in ("7-", "7-8", "7+3", "7+3-5", "-1", "12", "7--", "+")),
    ("copy:variant=random_twice", "1 NEXT 1"),
    ("cycle_navigation", "0130"),
    *(("flip_flop", text) for text in ("w1", "r1r", "w1i", "w1r0r", "wwr", "w1rr", "w11", "0w1", "w1i0")),
    *(("induction", text) for text in ("1 2 3", "S 1 2", "1 2 S", "S 1 S 2 S", "1 S S")),
    ("lego", "v0 + 1"),
    ("lego", "v0 + 1 v0"[:6]),
    *(("lego", text) for text in ("v0 + 1 v1", "v0 + v1 v1 - v0 v0", "v0 + 1 v1 + 1 v0", "v0 + 1 v0 - v0 v0")),
    ("lego", "+ v0 1 v0"),
    *(("missing_duplicate_string", text) for text in ("0", "0110", "0221", "0212 0112", "011 2111", "0110 0211")),
    ("missing_duplicate_string", "0110 0210 1"),
    *(("modular_arithmetic", text) for text in ("1+", "12", "+1+", "1+2-", "1 2 3")),
    *(("modular_arithmetic_brackets", text) for text in ("1+2", "(1+2", "1)", "(1+2+3)", "()", "(1+)", "--1", "(*1)")),
    *(("modular_arithmetic_brackets", text) for text in ("-(1)", "(1)(2)", "1(2)", "(1)2", "(12)", ")1(")),
    *(("mqar:n_pairs=2", text) for text in ("1 40 2 50 2 9 1", "1 40 1 50 1 9 1 7", "1 40 2 50 2 9 7 7")),
    *(("mqar:n_pairs=2", text) for text in ("0 40 2 50 2 9 0 7", "1 4 2 50 2 9 1 7", "1 40 2 50 2 9 2 7")),
    *(("multi_key:n_keys=1", text) for text in ("k4 1 QUERY k5", "k4 1 f0 k4", "f0 1 QUERY f0", "k4 f1 QUERY k4")),
    *(("multi_key:n_keys=1", text) for text in ("k4 1 k4 2 QUERY k4", "k4", "1 k4 QUERY k4")),
    *(("multi_value:n_values=1", text) for text in ("KEY 1 f0", "KEY f0 QUERY", "f0 KEY QUERY", "KEY 1 KEY 2 QUERY")),
    *(
        ("no_overlap:n_told=1", text)
        for text in ("n3 p7 QUERY r6", "n3 p7 QUERY p7", "p7 f0 QUERY r7", "f0 p7 QUERY r7")
    ),
    *(("no_overlap:n_told=1", text) for text in ("n3 p7", "n3 p7 f0 r7", "p7 n3 p7 QUERY r7", "n1 p7 n3 p7 QUERY r7")),
    ("parity", "0 1 YES"),
    *(
        ("passkey:n_digits=2", text)
        for text in ("KEY 42", "KEY 4 QUERY", "f0 KEY 4 QUERY", "KEY 42 f0", "f0 f0 f0 QUERY")
    ),
    *(("passkey:n_digits=2", text) for text in ("KEY 42 KEY 42 QUERY", "KEY 4 f0 QUERY")),
    ("passkey_text", "What is the pass key? The pass key is "),
    ("passkey_text", PASSKEY[:-1]),
    ("passkey_text", PASSKEY.replace("12345 is", "54321 is")),
    *(("polynomial", text) for text in ("-2", "2+3 x^2", "-2 +3", "-2 3+ x^2", "-2 x^2 +3")),
    *(("repeat_copy", text) for text in ("1 2", "1 2 3 1 3 3", "1 2 3")),
    ("reverse:variant=twice", "1 NEXT"),
    *(("scan", text) for text in ("jump twice twice", "and jump", "jump and", "left jump", "JUMP", "turn")),
    *(
        ("solve_equation", text)
        for text in ("1", "x", "1=1", "x+1=2", "(x+x)=2", "(x+1)==", "(1+1)=x", "x=(1)", "x1=2")
    ),
    *(("sorting:variant=multi_digit", text) for text in (",", "12,,13", "12,", ",12", "9", "12345", "012", "12,7")),
    ("stack_manipulation", "0121"),
    *(
        ("variable_tracking:n_hops=1:n_chains=1", text)
        for text in ("v0 = 3 v1 = v0 QUERY 4", "v0 = 3 v1 = v0 QUERY v0")
    ),
    *(("variable_tracking:n_hops=1:n_chains=1", text) for text in ("v0 = 3 v1 = 3 QUERY 3", "v0 = 3 f0 f0 f0 QUERY 3")),
    *(("variable_tracking:n_hops=1:n_chains=1", text) for text in ("v0 = 3 v1 = f0 QUERY 3", "v0 = 3 v1 = v0 f0 3")),
    ("variable_tracking:n_hops=1:n_chains=1", "v0 = 3"),
]


class Unsolved(Task):
    """Draws, and answers nothing else."""

    n_symbols = 3

    def output_length(self, length):
        return 1

    def sample(self, batch_size, length, generator):
        inputs = torch.randint(3, (batch_size, length), generator=generator)
        return Pairs(inputs, inputs[:, :1])


# Every task


@pytest.mark.parametrize(("name", "question", "answer"), ASKED)
def test_a_question_written_by_hand(name, question, answer):
    assert make_task(name).answer(question) == answer


def test_every_task_is_asked():
    assert {name.partition(":")[0] for name, *_ in ASKED} | {"passkey_text", "facts"} == set(list_tasks())


def test_the_passkey_in_a_text():
    task = make_task("passkey_text")
    assert task.answer(PASSKEY) == "12345"
    assert task.answer(torch.tensor(list(PASSKEY.encode()))).tolist() == list(b"12345")


@pytest.mark.parametrize(("name", "question"), NO_QUESTIONS)
def test_what_is_no_question_is_refused(name, question):
    with pytest.raises(UserError, match=r"is no question of \w+: its questions are \w+"):
        make_task(name).answer(question)


def test_the_refusal_shows_the_question_that_is_none():
    task = make_task("addition")
    with pytest.raises(
        UserError, match=r"^'9\+07' is no question of addition: its questions are two numbers with one \+"
    ):
        task.answer(torch.tensor([[9, 10, 1, 7], [9, 10, 0, 7]]))
    with pytest.raises(UserError, match=r"^'1{60}\.\.\.' is no question"):
        task.answer("1" * 100)


@pytest.mark.parametrize("name", list_tasks())
def test_symbols_have_names_of_their_own(name):
    task = make_task(name)
    assert len(task.symbols) == len(set(task.symbols)) == task.n_symbols


def test_rows_of_a_batch_differ_in_shape():
    task = make_task("addition")
    asked = torch.tensor([[9, 5, 10, 7], [9, 10, 4, 5], [1, 10, 9, 9]])
    assert task.answer(asked).tolist() == [[1, 0, 2], [5, 4, IGNORE], [1, 0, 0]]


def test_numbers_of_any_size_are_added():
    task, nines = make_task("addition"), "9" * 5000
    assert task.answer(f"{nines}+1") == "1" + "0" * 5000


def test_brackets_of_any_depth_are_read():
    task = make_task("modular_arithmetic_brackets")
    assert task.answer("(" * 5000 + "1" + "+1)" * 5000) == "1"


# Forms


def test_the_answer_has_the_form_of_the_question():
    task = make_task("addition")
    ids, answer = [9, 5, 10, 7], [1, 0, 2]
    assert task.answer("95+7") == "102"
    assert task.answer(["9", "5", "+", "7"]) == ["1", "0", "2"]
    assert task.answer(ids) == answer
    assert task.answer(tuple(map(np.int64, ids))) == answer
    assert task.answer(["95+7", "5+5"]) == ["102", "10"]
    assert task.answer([ids, [1, 10, 1], "1+1"]) == [answer, [2], "2"]
    for dtype in (torch.int64, torch.int32, torch.uint8):
        found = task.answer(torch.tensor(ids, dtype=dtype))
        assert (found.tolist(), found.dtype) == (answer, torch.int64)
    for dtype in (np.int64, np.int8, np.uint16):
        found = task.answer(np.array([ids, ids], dtype)[:, ::-1][:, ::-1])
        assert isinstance(found, np.ndarray)
        assert (found.tolist(), found.dtype) == ([answer, answer], np.int64)
    found = task.answer(list(torch.tensor([ids, ids])))
    assert [row.tolist() for row in found] == [answer, answer]


def test_shorter_answers_are_filled_up_in_rows_alone():
    task = make_task("stack_manipulation")
    asked = torch.tensor([[1, 2, 2], [1, 1, 0]])
    assert task.answer(asked).tolist() == [[2, *[IGNORE] * 3], [0, 1, 1, 2]]
    assert task.answer(asked.tolist()) == [[2], [0, 1, 1, 2]]
    assert task.answer(asked[0]).tolist() == [2]


def test_an_inline_answer_keeps_its_places():
    task = make_task("repeat_copy:vocabulary=12")
    assert task.answer([5, 11, 5]) == [IGNORE, IGNORE, 11]
    assert task.answer(torch.tensor([5, 11, 5])).tolist() == [IGNORE, IGNORE, 11]
    assert task.answer(["5", "11", "5"]) == ["_", "_", "11"]
    assert task.answer("5 11 5") == "_ _ 11"
    assert make_task("repeat_copy:vocabulary=9").answer("565") == "__6"


def test_the_question_stays_and_the_answer_is_no_view_of_it():
    asked = torch.tensor([[1, 2, 3]])
    make_task("copy").answer(asked)[:] = 0
    assert asked.tolist() == [[1, 2, 3]]


def test_spaces_are_needed_where_a_name_could_be_several():
    assert make_task("copy").answer("12 1") == "12 1"
    with pytest.raises(UserError, match=r"^'121' is no symbol; symbols are: 0 1 2 .* 99$"):
        make_task("copy").answer("121")
    assert make_task("copy:symbols=9").answer("1 21") == "121"


def test_text_reads_back():
    for name in list_tasks():
        task = make_task(name)
        inputs = task.sample(1, task.least_length + 7, torch.Generator().manual_seed(0)).inputs
        assert task.answer(task.text(inputs[0])) == task.text(task.answer(inputs[0]))


# Refusals


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("9 5 x 7", r"'x' is no symbol; symbols are: 0 1 2 3 4 5 6 7 8 9 \+"),
        ("", "a question is empty"),
        ("  ", "a question is empty"),
        (["1+1", "x"], "'x' is no symbol"),
        ([1, 10, 11], "addition has the ids 0 to 10, got 11"),
        (torch.tensor([1, IGNORE, 2]), "addition has the ids 0 to 10, got -100"),
        ([], r"not \[\]"),
        ([[1, 10, 2], []], r"not \[\]"),
        ([1.0, 10, 2], r"a question is text, or integer ids of shape \(n,\) or \(B, n\), not \[1.0, 10, 2\]"),
        ([True, False], r"not \[True, False\]"),
        ([2**70], "not object of shape"),
        (torch.rand(3), r"not torch.float32 of shape \(3,\)"),
        (torch.tensor([True]), "not torch.bool of shape"),
        (np.array(["1", "+", "1"]), "not <U1 of shape"),
        (np.ones(3), "not float64 of shape"),
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"not torch.int64 of shape \(1, 2, 3\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"not torch.int64 of shape \(2, 0\)"),
        (torch.tensor(1), r"not torch.int64 of shape \(\)"),
        (7, "not 7"),
        (None, "not None"),
        ({"1": 2}, "not {'1': 2}"),
    ],
)
def test_what_is_no_ids_and_no_text_is_refused(asked, message):
    with pytest.raises(UserError, match=message):
        make_task("addition").answer(asked)


def test_a_task_without_solve_says_so():
    with pytest.raises(UserError, match=r"^Unsolved answers no given questions: its class has no `solve`$"):
        Unsolved().answer("012")


def test_require_takes_rows_places_or_one_truth_for_all():
    task, inputs = Unsolved(), torch.tensor([[0, 1], [2, 2]])
    task.require(True, inputs, "what they are")
    task.require(torch.ones(2, 0, dtype=torch.bool), inputs, "what they are")
    for good, shown in ((False, "01"), (torch.tensor([True, False]), "22"), (inputs > 0, "01"), (inputs != 2, "22")):
        with pytest.raises(UserError, match=f"^'{shown}' is no question of Unsolved: its questions are what they are$"):
            task.require(good, inputs, "what they are")
