"""Named sets of defaults. A config file, flags and the environment go on top of one."""

from __future__ import annotations

PRESETS: dict[str, dict[str, object]] = {
    "paper": {},
    # The embedded default: no network, no key, no download, minutes on two CPU cores.
    "tiny": {
        "env": {"backend": "builtin", "world_size": "small", "max_steps": 10},
        "policy": {
            "kind": "local",
            # One thread: the sums do not depend on how many cores there are, and one is left for the screen.
            "threads": 1,
            "constrained": True,
            "prompt_style": "compact",
            "list_admissible": False,
        },
        "teacher": {"kind": "builtin"},
        # A beginner sees little of its household in an episode: what lies nowhere in the bank has to be searched for.
        "collect": {"episodes": 100},
        # A short cold start, so that there is something left for RL.
        "sft": {"learning_rate": 1e-3, "batch_size": 16, "epochs": 1, "num_examples": 64},
        "rl": {
            "learning_rate": 1e-3,
            "training_epochs": 14,
            "invalid_action_penalty": 0.02,
            "max_prompt_length": 1900,
            "max_response_length": 48,
        },
        "skill_retrieval": {"embedder": "builtin", "mode": "template", "general_top_k": 4},
        "evolution": {
            "validation_interval": 4,
            "evolution_threshold": 0.9,
            "max_new_skills": 4,
            "episodes": 48,
        },
    },
}
