"""Blocks in a chain of Python and C functions that `record_stack` writes down."""

import os


def block():
    os.read(0, 1)


class Shop:
    def price(self, item):
        block()
        return item


def total(shop):
    return sorted([2, 1], key=shop.price)


def orders():
    yield total(Shop())


def main():
    print("ready", flush=True)
    list(orders())


if __name__ == "__main__":
    main()
