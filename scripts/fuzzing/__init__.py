"""The fuzzer: one module for each kind of file that it mutates, and what runs and watches the cases."""
