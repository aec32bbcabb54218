"""English word lists for the root verb rules: verbs of instructions, function words, adjectives and nouns."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VERBS = _words(
    """
    accept act adapt add address advise affect alter analyse analyze annotate answer apply appraise argue arrange
    articulate ask assemble assess assign assume attach attempt auto-complete balance become begin benefit
    brainstorm break breakdown build calculate call capitalize caption cast categorise categorize change
    characterize chart check choose cite clarify classify clean cluster code collect combine come comment
    communicate compare compile complete compose compute conclude condense conduct configure conjugate connect
    consider construct contrast contribute control convert convince coin copy correct count craft create critique
    cut debate debug decide decipher declare decode deconstruct decorate decrease deduce deduct define delete
    deliver demonstrate derive describe design detail detect determine develop devise diagnose diagram differentiate
    discover discuss display distinguish distribute divide do document draft draw edit elaborate eliminate embed
    emphasize employ enhance enrich enter enumerate estimate evaluate examine execute expand explain explore express
    extend extract fact-check fill filter finalize find finish fix follow form format formulate gather generate get
    give group guess handle help highlight hypothesize identify illustrate imagine imitate impact implement improve
    include increase incorporate indicate infer influence inspire insert integrate interpret introduce invent
    investigate join judge justify keep know label lead learn leave let like link list locate look make manage map
    mark match measure mention merge mix model modify move multiply name narrate need negotiate note observe obtain
    offer optimize order organise organize outline output overcome paint pair paraphrase parse perform permute
    persuade pick pitch place plan play plot point polish pose post practice predict prepare present pretend prevent
    print prioritize process produce program project promote proofread propose protect prove provide pull punctuate
    put quantify query quote rank rate read rearrange reason recall recite recognize recommend reconstruct record
    recreate reduce refactor refer refine reflect reformat refute relate remove rename render reorder reorganize
    repeat rephrase replace report represent reproduce research resolve respond restate restructure retell retrieve
    return reveal reverse review revise reword rewrite rhyme role-play rotate round run say scale scan schedule
    score search seek segment select send sentence separate set shape share shorten show simplify simulate sketch
    solve sort speak specify speculate spell split start state stop store structure study submit substitute subtract
    suggest sum summarise summarize supply support switch synthesize tag take talk teach tell test think title trace
    track train transcribe transform translate transpose trim troubleshoot try turn tweak type understand undertake
    unscramble update upload use validate verify view visualize vote walk weigh win work write
    """
)

# First words of a lead-in before the verb: "Given a sentence, rewrite it".
LEAD_INS = _words(
    """
    given using in for based with from as if when while by to on at after before during assuming suppose considering
    according imagine following out under of without consider
    """
)

DETERMINERS = _words(
    """
    a an the this that these those my your his her its our their some any each every all both no another two three
    four five six seven eight nine ten twelve twenty one first second third several many few more most other enough
    either following given such what's half
    """
)

PREPOSITIONS = _words(
    """
    about above across after against along among around as at because before behind below beneath beside between
    beyond by despite during except for from if in inside into like near of off on onto out outside over per
    regarding since so than through throughout to toward towards under until unlike up upon via versus vs with
    within without whether
    """
)

CLAUSE_OPENERS = _words(
    """
    that which who whose whom where while when how why then but not can will should
    """
)

QUESTION_WORDS = _words(
    """
    what what's whats who who's which when where why how whose whom
    """
)

PRONOUNS = _words(
    """
    i you he she it we they me him us them myself yourself itself themselves something anything everything someone
    anyone one's there here
    """
)

AUXILIARIES = _words(
    """
    is are was were am be do does did can could would should will shall may might must has have had isn't aren't
    don't doesn't can't
    """
)

PARTICLES = _words(
    """
    up down out off back together
    """
)

# Words that start a description after a noun: "a sentence using the word".
POSTMODIFIERS = _words(
    """
    using containing involving including describing showing explaining given provided listed shown described
    mentioned present available based called named entitled titled written related starting beginning ending
    consisting made found used needed required necessary worth suitable capable similar different accordingly
    correctly below above together then instead again also
    """
)

ADJECTIVES = _words(
    """
    new good better best bad short long brief small large big simple complex clear concise detailed different
    similar common key main major minor important appropriate suitable correct right wrong true false possible
    proper fair fun funny great high low old young modern strong weak free healthy happy sad quick easy hard
    specific certain various own same whole full current recent past future relevant sample human random unique
    hypothetical catchy interesting given following single double blank missing underlined bold top
    """
)

# Nouns that end like a plural, an adjective, an adverb or a participle.
MASS_NOUNS = _words(
    """
    news lens bias gas bus class process business analysis thesis physics series species pros cons atlas canvas
    campus family reply supply assembly ally italy july anomaly monopoly proposal goal animal meal signal journal
    hospital capital festival manual approval rental trial tutorial material mineral metal interval total ritual
    mammal professional criminal chemical individual original editorial potential topic metric music logic graphic
    traffic fabric clinic public comic statistic characteristic critic picnic logistic narrative objective
    alternative adjective perspective initiative incentive motive detective archive drive dive table variable cable
    fable vegetable principle article timetable syllable summary dictionary glossary diary library vocabulary
    secretary boundary anniversary commentary salary itinerary lyric setting meeting painting building meaning
    training learning writing marketing recording feeling greeting thing ending beginning saying wedding evening
    morning reading cooking advertising engineering being finding warning interest test request quest forest contest
    guest nest harvest west rest dish fish wish english spanish
    """
)
