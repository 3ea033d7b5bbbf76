"""``python -m rnn_ext``: what was built and what this machine will use."""

from rnn_ext.info import build_info, explain

if __name__ == "__main__":
    info = build_info()
    width = max(map(len, info))
    for key, value in info.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{key:<{width}}  {text}")
    print()
    print(explain(100, 32, 256))
