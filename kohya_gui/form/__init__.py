"""The form and what stands beside it: settings, presets, the plan, the pictures."""
