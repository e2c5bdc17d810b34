package wordforms

// verbsRegular take their forms by spelling: -e, -y and sibilant endings are seen from the word itself.
const verbsRegular = `
accept accompany accuse achieve acquire act adapt add address adjust admire adopt adore advance advertise advise
affect afford agree aim allow amass amaze amuse announce annoy answer apologize appear applaud apply approach approve
argue arrange arrest arrive ask assemble assign assist assume attach attack attempt attend attract avoid award baffle
bake balance banish bark bathe battle beckon behave believe belong betray blame blaze bless blink blush boil borrow
bother bounce bow breathe bruise brush bubble build bully bump bury buzz calculate call care carry carve cause
celebrate challenge charge chase cheat cheer chew choke claim clarify classify clean climb close coat coax collect
combine comfort compare compete complain complete compose concentrate confess confuse connect consider consist contain
continue convey convince cook copy correct cough count cover crash crawl create crouch crucify crumble crush cry cure
damage dance dangle dare decay decide declare decorate defeat defend define delay deliver demand deny depend deploy
deposit describe deserve design destroy detect develop die digest dignify dine direct disagree disappear discover
discuss disguise dismay dismiss disobey display dissolve ditch divide donate doubt drain dread drench dress drown dry
dust dye earn edit educate embrace employ empty encourage enjoy enter entertain envy erase escape establish evolve
examine excite excuse exercise exhibit exist exit expand expect explain explode explore express extend fail fasten
fetch fill finish fix flash float flood flow flush fold follow force form fortify freeze fry fuss gallop gather gaze
giggle glance glorify glue gossip govern grate greet grieve groan groom guard guess guide gush hammer handle happen
harass harm harvest hate haul heat help hire hiss hope horrify hover hunt hurry hustle identify ignore imagine imitate
impress improve include increase inform inhale inherit injure inspire insult intend intensify interview introduce
invade invent invite jail join joke judge juggle jump justify kick kill kiss knead knock land last laugh launch leak
lick limit listen live load look love magnify mail manage march marry mash match matter melt memorize mend mention
migrate miss mix moan modify moor mortify move multiply mumble munch murmur mystify need nest nibble notice notify
obey observe obsess obtain occupy offer open oppress order owe pacify pack paint pardon park pass paste pause peel
peer perch perform perish petrify phone pick pierce pinch pity place play please point polish portray possess pour
practise praise pray preach predict prepare present preserve press pretend prevent print process produce profess
profit promise propose protect provide publish pull pump punish purify push qualify quash quench question race rain
raise ratify reach realize receive recite recognize rectify reduce refuse regain rejoice relax relay rely remain
remember remind remove repair repeat replace reply report rescue respect rest return reward rinse ripple roar roast
roll row ruin rumble rush sail satisfy scatter scold scorch scrape scratch scream scribble seal search seize select
separate serve settle shape share shave shelter shiver shock shout shuffle sigh signify simplify slide slouch
smash smile snatch sneer sneeze snore soak solve spare sparkle specify splash spray sprinkle spy squash squeeze stain
stare start stay steam stitch stretch struggle study stumble succeed suffer suggest supply support suppose surprise
surround survive suspect swallow sway switch tackle taste tax tease terrify testify thank tickle tie toast toil toss
touch trace trade trail train translate treat tremble trespass trouble trust try tumble twitch type unify unite unload
use vanish verify vex visit vote wait walk wander want warn wash waste watch water wave wax weed weigh welcome whine
whisper whistle wiggle wish wither wonder work worry wrestle wrinkle yawn yell zoom
`

// verbsDoubling double their last letter before -ed.
const verbsDoubling = `
admit ban bat beg blot brag chat chip chop clap clip commit compel control cram crop dab defer dim dip drag drip drop drum
equip expel flap flip flog flop grab grin grip hop hug hum jab jog jot knot mop nag nap nod occur omit pat permit pin plan
plod plot plug pop prefer prod propel prop rebel refer regret rob rot rub scan scar scrap scrub shop shrug sip skip slam slap
slip slot snap snip sob spot squat stab star stir stop strap strip strum submit swap tap throb tip transfer trap trim trot tug
wag whip wrap zip
`

// verbsIrregular have "word past".
const verbsIrregular = `
become became; begin began; bend bent; bite bit; bleed bled; blow blew; break broke; breed bred; bring brought; buy
bought; catch caught; choose chose; cling clung; come came; deal dealt; dig dug; do did; draw drew; drink drank; drive
drove; eat ate; fall fell; feed fed; feel felt; fight fought; find found; flee fled; fling flung; forget forgot;
forgive forgave; get got; give gave; go went; grow grew; hear heard; hide hid; hold held; keep kept; know knew; lead
led; leave left; lend lent; lose lost; make made; mean meant; meet met; pay paid; ride rode; rise rose; run ran; say
said; see saw; seek sought; sell sold; send sent; shake shook; shoot shot; shrink shrank; sing sang; sink sank; sit
sat; sleep slept; speak spoke; spend spent; spin spun; stand stood; steal stole; stick stuck; sting stung; strike
struck; swear swore; sweep swept; swim swam; swing swung; take took; teach taught; tell told; think thought; throw
threw; understand understood; wear wore; weep wept; win won; write wrote
`
