package wordforms

// nounsRegular take their plural by spelling: sibilants take -es, consonant and y become -ies, the others take -s.
const nounsRegular = `
abbey ability academy accident activity actress agency airport album allergy alley ambulance ancestor ankle ant
anthology apple apron arch army arrow artery artist atlas attorney autumn axe baby badge bakery balcony banana bandit
barrel basket battery bay beach bead bean bear bee belt bench berry biography bird birthday blanket bonus boss bottle
boundary box boy bracelet branch brick bridge brother bucket bus butcher butterfly button bypass cabbage cabin cable
camel camera campus candidate candle canyon carpet carrot castle cat caterpillar cavity census century ceremony chair
charity cherry chimney choir chorus church circus citizen city class cloud coach cockroach colony comb comedy
community compartment compass copper couch countess country county courtesy cousin cow crab cradle crayon cricket
crocodile crocus cross crown crutch cup currency curtain daisy daughter day decoy dentist deputy desert diary
dictionary discovery dish doctor dog dolphin donkey donor door doorway dragon drawer duchess duty eagle ear earthquake
egg elbow elephant embassy empress enemy engine entry envelope essay estuary eye eyebrow eyelash facility factory
fairy fallacy family fantasy farmer farmhouse feather fence ferry festival finch finger flag flower forest fork
fortress fox fraternity friend frog galaxy gallery garden gate ghost giraffe glacier glass glove goat goddess grape
grocery guest guitar hairbrush hat hedge heiress helmet hen highway hippopotamus hoax hobby holiday horse hospital
hostess hotel house identity inch industry injury inquiry insect iris island jacket jelly jersey jewel journey jungle
kettle key kidney king kitchen kitten kitty ladder lady lake lamp lantern lash laundry leash leech lemon letter
liberty library lily lion lioness lizard lobby lotus lunch luxury machine magazine mailbox mattress meadow medley
melody memory ministry minute mirror mistress mixture monkey month moon motorway mountain museum mystery nail nanny
napkin navy necklace needle nephew nunnery nurse nursery ocean octopus odyssey office onion opinion opportunity orange
orchard orphan ostrich oven owl oyster page painter palace pansy paradox parrot party patch pattern peach penalty
pencil penny peony pepper personality pharmacy philosophy pianist picture pillow pilot pirate planet plate platypus
pocket poem pony poppy porch pouch prefix princess prison property pulley puppy purse pyramid quality queen quilt
rabbit railway ranch ray recipe reflex remedy reporter resort rhinoceros ribbon river robot rocket rope rosary ruby
ruler runway saddle salary sandbox sandwich school seamstress secretary sentry shark shirt shoe shoulder sister sketch
sky snake sock soldier sparrow speech sphinx spider spoon statue stopwatch story strategy strawberry street
student suffix suitcase summary sunflower surgery sweater symphony table tablet tailor teacher temple tenant theory
therapy thistle thrush ticket tiger toe toolbox toothbrush torch tortoise toy tragedy tray treasury tree trench
triangle trolley trophy truck trumpet tulip tunnel turkey turtle typewriter uncle uniform university utility vacancy
valley variety vase vehicle victory village violin virus vitamin volley waiter waitress walkway wallet walrus warranty
wasp whale wheel window witch wizard woodpecker worm wrench writer yacht
`

// nounsOES end in o and take -es; nounsOS take -s.
const (
	nounsOES = `potato tomato hero`
	nounsOS  = `avatar bamboo burrito cameo casino cello disco hairdo igloo kangaroo kilo logo memo patio photo piano radio ratio
rodeo shampoo silo studio taco tattoo video zoo`
)

// nounsVES change f or fe to -ves.
const nounsVES = `calf elf half knife loaf self shelf thief wife wolf`

// nounsIrregular have "word plural".
const nounsIrregular = `
man men; woman women; child children; foot feet; tooth teeth; goose geese; ox oxen; crisis crises; analysis analyses;
thesis theses; oasis oases; hypothesis hypotheses; diagnosis diagnoses; bacterium bacteria; sheep sheep; species
species; aircraft aircraft; quiz quizzes; policeman policemen; fireman firemen; grandchild grandchildren
`
