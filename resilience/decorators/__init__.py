"""The policies as callers meet them: decorators and the objects behind them."""
