"""The multiple-choice knapsack problem, solved exactly."""
