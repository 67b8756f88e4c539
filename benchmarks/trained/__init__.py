"""Parts of the benchmark `real_search`, in which every epoch is trained."""
