"""A model that a server serves: its log-probabilities over the OpenAI API, beside the plan's."""
