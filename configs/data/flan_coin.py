"""The contrastive set of the CoIN paper, rebuilt: FLAN's tasks with definite answers.

    python -m coin_jax.paraphrase --config configs/data/flan_coin.py:TEMPLATES --output data/coin

The prompts come from the hub (Muennighoff/flan), and the template that made each of them is found
again, so that every instance can be asked in all of its task's wordings. TEMPLATES are FLAN's own,
as JSON {task: [{"input", "target"}]}; docs/data.md says how to get them.

Yan et al. 2024 (arXiv 2402.11138), section 3.2: 25 tasks, 52 thousand pairs. Their names are those
of the authors' repository; paraphrases by a chat model are one more option here:
--paraphrase.methods chat.
"""

from coin_jax.config import TaskConfig
from coin_jax.curation.config import FilterConfig, SetConfig, SourceConfig

TASKS = (
    *("ag_news_subset", "anli_r1", "anli_r2", "anli_r3", "bool_q", "cb", "cola", "glue_mrpc"),
    *("glue_qqp", "imdb_reviews", "mnli_matched", "mnli_mismatched", "multirc", "paws_wiki"),
    *("qnli", "rte", "sentiment140", "snli", "sst2", "stsb", "trec", "wic", "wnli", "wsc"),
    "yelp_polarity_reviews",
)


def get_config(arg: str = "data/flan_templates.json") -> SetConfig:
    return SetConfig(
        sources=(
            SourceConfig(
                kind="flan",
                files=tuple(
                    f"hub:Muennighoff/flan/train/{task}_10templates_train.jsonl" for task in TASKS
                ),
                template_files=(arg,),
                tasks=tuple(map(TaskConfig, TASKS)),
                licence="apache-2.0 (templates); each data set has a licence of its own",
            ),
        ),
        definite_answers_only=True,
        pairs=52_000,
        filters=FilterConfig(language="en"),
    )
