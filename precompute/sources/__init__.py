"""Where samples come from: `base` (the contract), `registry` (what SOURCE is), and a module for each kind.

`folder` (with `tree` and `labels`), `table` and `file_list` (with `entries` and `text`); `files` reads single files.
`hf_folder` and `hf_name` with `embedded` (and `embedded_columns`), which reads images out of the `data_files` of
`arrow_images` and `parquet_images`;
`torchvision_sets` and `memory` for what programs hold.
"""
