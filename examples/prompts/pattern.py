import unittest

from shapes import Circle, Rectangle, Square, Triangle


class ShapeTest(unittest.TestCase):

    def test_square_area(self):
        shape = Square(4)
        self.assertEqual(shape.area(), 16)
        self.assertEqual(shape.name, "square")

    def test_square_perimeter(self):
        shape = Square(4)
        self.assertEqual(shape.perimeter(), 16)
        self.assertEqual(shape.name, "square")

    def test_rectangle_area(self):
        shape = Rectangle(3, 5)
        self.assertEqual(shape.area(), 15)
        self.assertEqual(shape.name, "rectangle")

    def test_rectangle_perimeter(self):
        shape = Rectangle(3, 5)
        self.assertEqual(shape.perimeter(), 16)
        self.assertEqual(shape.name, "rectangle")

    def test_triangle_area(self):
        shape = Triangle(3, 4, 5)
        self.assertEqual(shape.area(), 6)
        self.assertEqual(shape.name, "triangle")

