"""The life of one attempt: from a composed config to parts, a state to start from, a trained network and a report."""
