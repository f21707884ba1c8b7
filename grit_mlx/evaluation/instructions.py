"""Instructions for MTEB's English tasks: those of E5, with which GritLM was evaluated.

Source: the table in Microsoft's unilm, e5/utils.py, which GritLM's authors use in evaluation/eval_mteb.py.
"""

from __future__ import annotations

import re

from grit_mlx.model.settings import Settings

__all__ = ["QUERIES", "TEXTS", "instruction_for"]

# For the queries of retrieval; documents have none.
QUERIES: dict[str, str] = {
    "ArguAna": "Given a claim, find documents that refute the claim",
    "ClimateFEVER": "Given a claim about climate change, retrieve documents that support or refute the claim",
    "CQADupstack": "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates "
    "to the given question",
    "DBPedia": "Given a query, retrieve relevant entity descriptions from DBPedia",
    "FEVER": "Given a claim, retrieve documents that support or refute the claim",
    "FiQA2018": "Given a financial question, retrieve user replies that best answer the question",
    "HotpotQA": "Given a multi-hop question, retrieve documents that can help answer the question",
    "MSMARCO": "Given a web search query, retrieve relevant passages that answer the query",
    "NFCorpus": "Given a question, retrieve relevant documents that best answer the question",
    "NQ": "Given a question, retrieve Wikipedia passages that answer the question",
    "Quora": "Given a question, retrieve questions that are semantically equivalent to the given question",
    "SCIDOCS": "Given a scientific paper title, retrieve paper abstracts that are cited by the given paper",
    "SciFact": "Given a scientific claim, retrieve documents that support or refute the claim",
    "Touche2020": "Given a question, retrieve detailed and persuasive arguments that answer the question",
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
}

# For all texts of the other tasks.
TEXTS: dict[str, str] = {
    "AmazonCounterfactualClassification": "Classify a given Amazon customer review text as either counterfactual or "
    "not-counterfactual",
    "AmazonPolarityClassification": "Classify Amazon reviews into positive or negative sentiment",
    "AmazonReviewsClassification": "Classify the given Amazon review into its appropriate rating category",
    "Banking77Classification": "Given a online banking query, find the corresponding intents",
    "EmotionClassification": "Classify the emotion expressed in the given Twitter message into one of the six "
    "emotions: anger, fear, joy, love, sadness, and surprise",
    "ImdbClassification": "Classify the sentiment expressed in the given movie review text from the IMDB dataset",
    "MassiveIntentClassification": "Given a user utterance as query, find the user intents",
    "MassiveScenarioClassification": "Given a user utterance as query, find the user scenarios",
    "MTOPDomainClassification": "Classify the intent domain of the given utterance in task-oriented conversation",
    "MTOPIntentClassification": "Classify the intent of the given utterance in task-oriented conversation",
    "ToxicConversationsClassification": "Classify the given comments as either toxic or not toxic",
    "TweetSentimentExtractionClassification": "Classify the sentiment of a given tweet as either positive, negative, "
    "or neutral",
    "ArxivClusteringP2P": "Identify the main and secondary category of Arxiv papers based on the titles and abstracts",
    "ArxivClusteringS2S": "Identify the main and secondary category of Arxiv papers based on the titles",
    "BiorxivClusteringP2P": "Identify the main category of Biorxiv papers based on the titles and abstracts",
    "BiorxivClusteringS2S": "Identify the main category of Biorxiv papers based on the titles",
    "MedrxivClusteringP2P": "Identify the main category of Medrxiv papers based on the titles and abstracts",
    "MedrxivClusteringS2S": "Identify the main category of Medrxiv papers based on the titles",
    "RedditClustering": "Identify the topic or theme of Reddit posts based on the titles",
    "RedditClusteringP2P": "Identify the topic or theme of Reddit posts based on the titles and posts",
    "StackExchangeClustering": "Identify the topic or theme of StackExchange posts based on the titles",
    "StackExchangeClusteringP2P": "Identify the topic or theme of StackExchange posts based on the given paragraphs",
    "TwentyNewsgroupsClustering": "Identify the topic or theme of the given news articles",
    "SprintDuplicateQuestions": "Retrieve duplicate questions from Sprint forum",
    "TwitterSemEval2015": "Retrieve tweets that are semantically similar to the given tweet",
    "TwitterURLCorpus": "Retrieve tweets that are semantically similar to the given tweet",
    "AskUbuntuDupQuestions": "Retrieve duplicate questions from AskUbuntu forum",
    "MindSmallReranking": "Retrieve relevant news articles based on user browsing history",
    "SciDocsRR": "Given a title of a scientific paper, retrieve the titles of other relevant papers",
    "StackOverflowDupQuestions": "Retrieve duplicate questions from StackOverflow forum",
    "SummEval": "Given a news summary, retrieve other semantically similar summaries",
}

# What MTEB adds to the names of revised tasks.
_VARIANT = re.compile(r"(HardNegatives)?(Reranking)?(\.v\d+)?$")


def instruction_for(task: str, kind: str, *, document: bool, settings: Settings, prompt: str | None = None) -> str:
    """The instruction of a task, without GRIT's markers.

    Args:
        task: its name in MTEB.
        kind: its type there, such as ``"Retrieval"``.
        document: whether the texts are documents, not queries; matters for retrieval only.
        settings: the model's, for tasks without an instruction.
        prompt: the task's own, for tasks that are not in E5's table.
    """
    name = _VARIANT.sub("", task)
    for table in (TEXTS, QUERIES):
        known = next((one for one in (task, name) if one in table), None)
        known = known or next(
            (one for one in table if table is QUERIES and re.match(rf"{one}.*Retrieval$", name)), None
        )
        if known is not None:
            return settings.document_instruction if document and table is QUERIES else table[known]
    if kind == "STS":
        return settings.similarity_instruction
    if "Retrieval" in kind or kind == "Reranking":
        return settings.document_instruction if document else prompt or settings.query_instruction
    return prompt or settings.similarity_instruction
