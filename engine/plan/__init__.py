"""What is to be done and why: identities of steps and models, what is cached, the lock. Its door is `plan`."""
