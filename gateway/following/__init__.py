"""From one log to encoded events: tails follow logs, rings hold the newest events as each face shows them."""
