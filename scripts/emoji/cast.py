"""The subjects of the video model: well-known emoji that look different from one another at 64 pixels."""

from __future__ import annotations

_NAMES = """
red heart, yellow heart, blue heart, broken heart, star, sun, crescent moon, full moon, rainbow, cloud, fire, snowflake, snowman, droplet,
ringed planet, high voltage, ghost, robot, alien, skull, jack-o-lantern, clown face, pile of poo, grinning face, smiling face with heart-eyes,
smiling face with sunglasses, face with tears of joy, winking face, thinking face, angry face, crying face, sleeping face, thumbs up, Santa Claus,
cat face, dog face, panda, bear, koala, fox, lion, tiger face, unicorn, horse, elephant, monkey face, pig face, cow face, frog, rabbit face,
mouse face, penguin, owl, parrot, duck, baby chick, tropical fish, dolphin, octopus, crab, turtle, butterfly, lady beetle, honeybee, snail, T-Rex,
dragon, rose, sunflower, tulip, cherry blossom, mushroom, cactus, palm tree, evergreen tree, Christmas tree, maple leaf, four leaf clover, red apple,
banana, strawberry, watermelon, lemon, pineapple, cherries, carrot, avocado, pizza, hamburger, doughnut, cookie, ice cream, birthday cake, cupcake,
hot beverage, beer mug, rocket, automobile, bus, fire engine, tractor, bicycle, airplane, helicopter, sailboat, flying saucer, house, castle,
umbrella, balloon, wrapped gift, trophy, soccer ball, basketball, tennis, game die, teddy bear, kite, guitar, drum, bell, crown, gem stone, top hat,
sunglasses, alarm clock, light bulb, bomb, key, magnet, money bag, open book, gear
"""
CAST = frozenset(" ".join(_NAMES.split()).split(", "))
