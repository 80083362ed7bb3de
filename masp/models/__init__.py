"""The frozen VLM in two halves and the two small things trained around it. Knows neither ranks nor the cache."""
