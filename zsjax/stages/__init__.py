"""What each stage of a run does; `zsjax.pipeline` has their list and runs them."""
