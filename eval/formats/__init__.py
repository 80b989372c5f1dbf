"""Files of other tools: recognised by what they hold, and returned as records of this package's own form.

Each scorer has one function here: `damro.eval.formats.answers.read_answers` for yes/no answers and
`damro.eval.formats.captions.read_captions` for captions. Readers of Excel and Parquet files are imported when such a
file is read; they come with the extra ``damro[data]``.
"""
