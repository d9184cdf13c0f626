"""What each stage of a run does; `zsjax.run.pipeline` has their list and runs them."""
