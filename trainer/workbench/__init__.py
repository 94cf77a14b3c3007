"""The hour before training: pictures looked through, captions written, what is wrong found and put right.

`album` is what lies in the folders, `operations` and `changes` edit captions as transactions that can be undone,
`statistics` counts tags, `problems` finds what is wrong, `captioners` are models that write captions, `uploads` takes
files in, `painting` keeps masks, `folders` renames, `thumbnails` shows. Nothing here changes a picture: what is decided
about one is written beside it, see `pictures.remarks`. Importing it imports no torch; what needs a model imports that
when it is asked for.
"""
