"""What a run would cost on machines that are not here: memory, time, collectives, the best mesh."""
