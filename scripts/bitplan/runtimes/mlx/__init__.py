"""MLX on Apple silicon: folders that mlx-lm loads."""
