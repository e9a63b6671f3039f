"""What a job would take: passes by arithmetic, seconds and memory by measured rates."""
