package wordforms

// adjectivesRegular take -er and -est by spelling: after e only -r and -st, consonant and y become -ier and -iest.
const adjectivesRegular = `
airy angry baggy bald bland blank bleak bloody bold bony bossy bouncy brainy brave brief bright broad bulky bumpy
bushy busy calm chatty cheap chewy chilly classy clear clever cloudy clumsy coarse cold cool cosy cranky crazy creamy
crisp crunchy curly curvy dainty damp dark deep dense dirty dizzy dreamy drowsy dull dusty early easy faint fair fancy
fast feeble fierce filthy fine firm flimsy fluffy foamy foggy foul fresh friendly frosty frothy funny fuzzy gentle
gloomy grand grassy grave greasy great greedy green gritty grumpy guilty hairy handy happy hard harsh hasty healthy
heavy hefty high hilly hoarse hollow holy humble hungry icy idle itchy jolly juicy jumpy keen lame large late lazy
leafy lengthy light lively lofty lonely long loose loud lovely low lucky lumpy meek merry messy mighty mild moist
moody mossy muddy mushy narrow nasty naughty near neat new nice nimble noble noisy nutty odd old pale plain plump
polite poor posh pretty proud puffy pure quick quiet quirky rainy rare rich ripe risky roomy rosy rough rude rusty
safe salty sandy sassy saucy scarce scary scruffy severe shabby shaggy shallow sharp shiny short shrewd silly simple
skinny sleek sleepy slender slight slippery sloppy slow small smart smelly smooth snappy snowy soft sore sour speedy
spicy spooky stark steady steep stern sticky stiff stormy stout strange strict strong sturdy subtle sunny sweet swift
tall tame tangy tart tasty tender tense terse thick thirsty thorny tidy tight tiny touchy tough trendy tricky true
ugly vague vast vile warm wary wavy weak wealthy weary weird wide wild windy wise witty wobbly woolly worthy wrinkly
young yummy zesty
`

// adjectivesDoubling double their last letter.
const adjectivesDoubling = `big drab fat fit flat glad glum grim hot mad red sad slim snug tan thin wet`

// adjectivesIrregular have "word comparative superlative".
const adjectivesIrregular = `good better best; bad worse worst`
