"""Rows in the layouts of benchmarks, written for the tests, and their prompts."""

from __future__ import annotations

from typing import Any

BOXED = "Please reason step by step, and put your final answer within \\boxed{}."
CHOICE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'Answer: $LETTER' (without quotes) where LETTER is one of"
)

ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {
        "question": "Ann has 3 bags of 4 pears. How many pears?",
        "answer": "3 bags times 4 pears are <<3*4=12>>12.\n#### 12",
    },
    "math500": {
        "problem": "What is $\\frac{1}{4}+\\frac{1}{4}$?",
        "solution": "It is $\\boxed{\\frac{1}{2}}$.",
        "answer": "\\frac{1}{2}",
        "subject": "Prealgebra",
        "level": 2,
        "unique_id": "test/prealgebra/1.json",
    },
    "aime24": {"id": 60, "problem": "Find the remainder of $7^3$ divided by 310.", "answer": "033", "year": "2024"},
    "aime25": {"problem": "Find $2^6+6$.", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "question": "What is $3^3$?", "answer": "27.0", "url": "https://example.org"},
    "minerva_math": {"question": "What is the speed of light in cm/s?", "answer": "3e10"},
    "olympiadbench": {
        "id": 1,
        "question": "Find all real $x$ with $x^2=4$.",
        "context": None,
        "final_answer": ["$2,-2$"],
        "is_multiple_answer": True,
        "subfield": "Algebra",
    },
    "gpqa_diamond": {
        "Question": "Which particle has no charge?\n",
        "Correct Answer": "the neutron ",
        "Incorrect Answer 1": "the proton",
        "Incorrect Answer 2": "the electron",
        "Incorrect Answer 3": "the muon",
        "High-level domain": "Physics",
        "Subdomain": "Particles",
    },
    "mmlu_pro": {
        "question_id": 1,
        "question": "Which number is prime?",
        "options": ["4", "6", "7", "8", "9"],
        "answer": "C",
        "answer_index": 2,
        "category": "math",
    },
}

ASKED: dict[str, tuple[str, str, str]] = {
    "gsm8k": (f"Ann has 3 bags of 4 pears. How many pears?\n{BOXED}", "12", ""),
    "math500": (f"What is $\\frac{{1}}{{4}}+\\frac{{1}}{{4}}$?\n{BOXED}", "\\frac{1}{2}", "level 2"),
    "aime24": (f"Find the remainder of $7^3$ divided by 310.\n{BOXED}", "033", ""),
    "aime25": (f"Find $2^6+6$.\n{BOXED}", "70", ""),
    "amc23": (f"What is $3^3$?\n{BOXED}", "27.0", ""),
    "minerva_math": (f"What is the speed of light in cm/s?\n{BOXED}", "3e10", ""),
    "olympiadbench": (f"Find all real $x$ with $x^2=4$.\n{BOXED}", "$2,-2$", "Algebra"),
    "gpqa_diamond": (
        f"{CHOICE} ABCD. Think step by step before answering.\n\nWhich particle has no charge?\n\n"
        "A) {0}\nB) {1}\nC) {2}\nD) {3}",
        "",
        "Physics",
    ),
    "mmlu_pro": (
        f"{CHOICE} ABCDE. Think step by step before answering.\n\nWhich number is prime?\n\n"
        "A) 4\nB) 6\nC) 7\nD) 8\nE) 9",
        "C",
        "math",
    ),
}
"""Prompt, ground truth and difficulty class of each row. The order of the choices of gpqa_diamond is a hash."""
