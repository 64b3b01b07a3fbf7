"""An existing ds_config.json, read with DeepSpeed 0.19.8's meaning of every key.

text -> syntax (values with their places) -> problems -> resolved (auto, defaults) -> meaning (sizes, devices)
"""
