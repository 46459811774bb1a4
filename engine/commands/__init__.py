"""The commands of `caiflow`, one module each; every module has EXAMPLES, arguments(parser) and execute(args)."""
