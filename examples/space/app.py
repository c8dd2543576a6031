"""The page of `probpose demo` as a Space."""

from probpose.demo import appearance, build_demo

demo = build_demo()

if __name__ == "__main__":
    demo.launch(**appearance())
