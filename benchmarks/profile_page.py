def write(value, docs):
    pass
