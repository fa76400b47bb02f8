"""Class names as they read in a prompt, in the sets' own label order, and their folders' names."""

from __future__ import annotations

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

STL10_NAMES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")

FASHION_MNIST_NAMES = (
    "T-shirt or top",
    "pair of trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)

KMNIST_NAMES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

FER2013_NAMES = ("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral")

PCAM_NAMES = ("lymph node tissue without a tumour", "lymph node tissue with a tumour")

SST2_NAMES = ("negative", "positive")

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

GTSRB_NAMES = (
    "speed limit 20 km/h",
    "speed limit 30 km/h",
    "speed limit 50 km/h",
    "speed limit 60 km/h",
    "speed limit 70 km/h",
    "speed limit 80 km/h",
    "end of speed limit 80 km/h",
    "speed limit 100 km/h",
    "speed limit 120 km/h",
    "no overtaking",
    "no overtaking by trucks",
    "priority at the next crossing",
    "priority road",
    "give way",
    "stop",
    "closed to all vehicles",
    "closed to trucks",
    "no entry",
    "general danger",
    "dangerous bend to the left",
    "dangerous bend to the right",
    "double bend",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road works",
    "traffic lights ahead",
    "pedestrians",
    "children crossing",
    "cyclists crossing",
    "danger of ice or snow",
    "wild animals crossing",
    "end of all speed and overtaking limits",
    "turn right ahead",
    "turn left ahead",
    "straight ahead only",
    "straight ahead or right",
    "straight ahead or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by trucks",
)

_DTD = """
banded blotchy braided bubbly bumpy chequered cobwebbed cracked crosshatched crystalline dotted fibrous
flecked freckled frilly gauzy grid grooved honeycombed interlaced knitted lacelike lined marbled matted
meshed paisley perforated pitted pleated polka-dotted porous potholed scaly smeared spiralled sprinkled
stained stratified striped studded swirly veined waffled woven wrinkled zigzagged
"""
DTD_FOLDERS = tuple(_DTD.split())

EUROSAT_NAMES = {
    "AnnualCrop": "fields of annual crops",
    "Forest": "a forest",
    "HerbaceousVegetation": "shrubs and wild meadows",
    "Highway": "a highway",
    "Industrial": "factories and warehouses",
    "Pasture": "pastures",
    "PermanentCrop": "orchards and vineyards",
    "Residential": "houses of a residential area",
    "River": "a river",
    "SeaLake": "a sea or a lake",
}
EUROSAT_FOLDERS = tuple(EUROSAT_NAMES)
