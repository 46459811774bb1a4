"""What outlives a run: artifacts, the ledger of paid rows, each run's journal, all under one home. Its door is `artifacts`."""
