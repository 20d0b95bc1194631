"""Content that a summary must not contain, as regular expressions over folded text (popi.signals.lookalikes.fold).

Every pattern is tested against ordinary summaries (tests/data/summaries.txt): someone who likes "clear instructions",
"strict rules of grammar" or Node.js must not be rejected. Ambiguous text passes.
"""

import re
from typing import Literal

from popi.signals.lookalikes import fold

Kind = Literal["link", "code", "markup", "encoded", "instruction"]
"""Kinds of content: addresses, program text, tags and special tokens, encoded text, instructions to a model."""

LINK = r"""
    \b[a-z][a-z0-9+.-]{1,15}:(?://|\\\\)  |  (?<![\w:])//[\w-]+\.\w  |  \bh..ps?://  |  \bwww\.\w
    | \b(?:javascript|data|mailto|vbscript):\S
    | \S@[\w-]+\.\w  |  \b(?:\d{1,3}\.){3}\d{1,3}\b  |  \w\s?[\[({]\s?(?:\.|dot)\s?[\])}]\s?\w
    | \b[\w-]{1,63}\ dot\ (?:com|org|io|dev|info|ru|cn)\b(?!\ \w)
    | !?\[[^\]\n]{0,300}\]\([^)\n]{0,300}\)  |  \[[^\]\n]{1,300}\]:\s?\S
"""
DOMAIN = re.compile(r"(?<![\w@.-])((?:[a-z0-9-]+\.)+[a-z]{2,6})(?![\w-])(/?)")
TLDS = frozenset(
    "com org net io dev app ai co info biz xyz top site online shop club link click me tv cc ru cn de uk fr es it nl"
    " pl br in jp kr us eu ch at se no fi dk cz edu gov mil int".split()
)
NAMES = frozenset("asp.net ado.net vb.net ml.net socket.io paper.io agar.io booking.com amazon.com node.io".split())
"""Products whose names look like addresses."""

HTML = "(?:b|br|code|div|em|h[1-6]|hr|i|li|ol|p|pre|span|strong|sub|sup|table|td|th|tr|u|ul)"
"""Bare tags with these names count as code, which people may mention; all others are markup."""

CODE = r"""
    ```  |  ~~~  |  \{\{|\}\}|\{%|%\}|\$\{
    | [{\[]\s{0,9}"[^"\n]+"\s*:  |  "\s{0,3}[}\]]{2,}
    | \b(?:def|function|fn|func)\s+\w+\s*\(  |  \bclass\s+\w+\s*[({:]  |  \bimport\s+\w+\s*;  |  \b\w+\.\w+\([^)\n]*\)
    | \b(?:eval|exec|print|system|alert|require)\s*\(  |  =>\s*[{(]  |  ^[ \t]*=\w+\(
    | \b(?:select\s.{1,80}\sfrom|insert\s+into|drop\s+table|delete\s+from)\s+\w+\s*(?:;|where|values|--|$)
    | \b(?:rm\s+-\w+|curl\s+-|wget\s|chmod\s|bash\s+-c|sudo\s+(?:rm|apt|dd|ch\w+|mv|sh))\s?\S
    | \|\s*(?:ba)?sh\b  |  \\begin\{|\\(?:def|input)\{
    | <\s?/?HTML\s?/?>
""".replace("HTML", HTML)
RUN = re.compile(r"[a-z0-9+/_]{24,}")
"""Letters and digits without spaces; encoded text has both."""
SPAN = re.compile(r"`([^`\n]+)`")
NO_NAME = re.compile(r"[^\w.+#-]")
"""A single name in backticks is allowed (`uv`, `c++`); anything with spaces or brackets is code."""
MARKUP = r"""
    <(?!\s?/?HTML\s?/?>)\s?[/!?a-z][^<>\n]{0,200}>  |  <!--|-->  |  <!\[cdata\[  |  <\?[a-z]
    | (?:^[ \t]*\#|(?:^|\s)\#{2,6}|^[ \t]*={2,})\s{0,3}
        (?:system|instructions?|task|input|output|response|assistant)\s{0,3}:?\s{0,3}[\#=]*\s*?$
    | ^[ \t]*(?:\#{3,}|"{3,})\s*$  |  ={3,}  |  ^[ \t]*\|.*\|.*\|\s*$  |  ^[ \t]*>\s
    | (?:^|[\n.!?\]}"]\s{0,3})(?:system|assistant|human|ai|developer|function_call)\s{0,3}:\s{0,3}\S
    | \brole"?\s{0,3}:\s{0,3}"?(?:system|assistant)"?\s{0,3}(?:,|$)
    | \[\s?/?\s?(?:system|assistant|user|inst)\s?\]  |  &(?:lt|gt|amp|quot|\#\d+|\#x[0-9a-f]+);
""".replace("HTML", HTML)
ENCODED = r"""
    (?<![a-z0-9+/])[a-z0-9+/]{16,}={1,2}
    | \b(?:0x)?[0-9a-f]{24,}\b  |  (?:%[0-9a-f]{2}){2,}  |  \\u[0-9a-f]{4}|\\x[0-9a-f]{2}
    | \b(?:[01]{8}\s+){2,}  |  (?:[.-]{1,5}\s){5,}  |  (?:\b\w[\ -]{1,3}){9,}  |  =\?[\w-]+\?[bq]\?
    | \b(?:\d{1,2}\s+){6,}\d{1,2}\b  |  \bbase64\s?[:,]\s?\S  |  \bin\ rot-?13\s?:
"""

RULES = r"(?:instructions?|directions|directives|guidelines|rules?|prompts?|orders|commands?)"
START = r"(?:^|[.!?:;]\s{1,3}|\n\s{0,3})"
"""Start of a sentence: elsewhere, the same words may be part of a preference ("keep the message to the operator
short")."""
# Mentioning models, prompts, rules and passwords is fine. These are instructions: dropping earlier text; addressing the
# model about its own instructions, makers, limits or data; secrecy; tool calls; a wording to output.
INSTRUCTION = rf"""
    (?<!that\ )(?<!which\ )(?<!who\ )(?<!not\ )(?<!n't\ )(?<!never\ )
        \b(?:ignore|disregard|forget|override|overrule|bypass|neglect)\b[^.!?\n]{{0,40}}\b
        (?:(?:previous|prior|earlier|above|preceding|initial|original|system|your|all)\b[^.!?\n]{{0,20}}\b{RULES}\b
        |everything\ (?:above|before|so\ far))
    | {START}(?:ignore|disregard|forget)\ (?:the|these|those|all)\ (?:signals|pairs|user\ data)\b
    | \b(?:obey|follow)\b[^.!?\n]{{0,20}}\b(?:last|next)\ (?:message|order)\b
    | \b(?:all|any|your|its|the)\ (?:\w+\ )?{RULES}(?:\ \w+){{0,3}}\ (?:is|are|was|were|been)\ (?:now\ )?
        (?:void|cancelled|invalid|replaced|suspended|a\ test)\b
    | \bnew\ (?:system\ prompt\b|(?:instructions?|directives?|orders)\s?:)
    | \b(?:dan|unrestricted|jailbreak)\ mode\b  |  \bmode\ (?:is\ )?(?:now\ )?(?:on|enabled|activated)[.!:]
    | \bsafety\ (?:checks?|filters?)\ (?:is|are)\ (?:now\ )?(?:off|disabled)\b  |  \bsystem\ override\b
    | \byou\ are\ (?:now|no\ longer)\ (?:an?|the|my|bound|free)\b
    | \b(?:act|behave|pretend)\b[^.!?\n]{{0,30}}\b(?:unrestricted|jailbroken|uncensored|you\ had\ no\ rules)\b
    | \b(?:reveal|repeat|print|show|output|leak|disclose|write\ down|tell|copy|quote)\b[^.!?\n]{{0,40}}\b
        (?:your\ (?:\w+\ )?(?:prompt|instructions|configuration)|hidden\ (?:instructions|prompt)|between\ the\ tags)\b
    | \bwhat\ were\ you\ (?:told|given)\b
    | \bask\ (?:the\ user|them)\ for\ (?:their|a|the)\ (?:password|api\ key|(?:credit\ )?card)\b
    | \b(?:do\ not|don't|never)\ (?:tell|mention|reveal|inform)\b[^.!?\n]{{0,30}}\b
        (?:this\ (?:note|message|prompt)|these\ (?:notes|messages|instructions)|your\ (?:prompt|instructions))\b
    | {START}without\ (?:telling|informing)\ (?:anyone|anybody)\b
    | {START}secretly\ (?:\w+\ )?(?:insert|add|put|send|include|write)\b
    | {START}(?:note|message|memo|notice|command|order)\ (?:(?:to|for)\ (?:the\ |any\ )?
        (?:language\ model|ai|llm|assistant|model|summari[sz]er)|from\ (?:the\ )?(?:operator|admin\w*|developers?))\b
    | \battention,?\ (?:ai|llm|assistant|model)\b  |  \bsystem\ (?:notice|alert|message)\s?:
    | \bas\ an\ ai\b[^.!?\n]{{0,20}}\byou\ (?:have|must|are|should|need)\b
    | \bif\ you\ are\ an?\ (?:language\ model|ai|llm|assistant)\b  |  \byou,?\ the\ model\b
    | {START}end\ of\ (?:the\ )?(?:user\ )?(?:signals|data|preferences)\s?[.:!]  |  \b(?:signals|data)\ ends?\ here\b
    | \bthis\ is\ not\ data\b  |  \bsignals\ are\ data\b
    | \byour\ (?:only\ |real\ |next\ )?(?:task|output|summary|word)\ (?:is|will\ be|must|shall|ends\ with)\b
    | \b(?:the|your)\ real\ task\b  |  \bthe\ right\ summary\ is\b
    | \byour\ previous\ (?:answer|summary)\ was\ wrong\b
    | \b(?:copy|put)\ this\ (?:sentence|line|text)\ into\ the\ summary\b
    | \b(?:say|print|output|write|repeat)\ \S+\ (?:ten|twenty|(?:a\ )?hundred|(?:a\ )?thousand|\d{{2,}})\ times\b
    | \bthis\ text\ and\ nothing\ else\s?:
    | {START}(?:call|invoke)\ the\ (?:(?:tool|function)\ \w+_\w+|\w+_\w+\ (?:tool|function))\b
    | {START}use\ the\ \w+_\w+\ (?:tool|function)\ to\ (?:send|forward|post|delete)\b
    | \b(?:forward|upload|exfiltrate|send)\ (?:this|the|our|your)\ (?:conversation|chat|transcript|history)\ to\b
    | \bcontain\ an?\ ad(?:vertisement)?\b  |  \btell\ the\ (?:next|other)\ (?:language\ )?model\b
    | \byour\ (?:own\ )?(?:programming|safeguards?|conditioning|handlers?|makers?|creators?|developers?)\b
    | \b(?:what|nothing|everything|all)\ (?:that\ )?you\ (?:were|have\ been)\ (?:told|instructed|ordered)\b
    | \b(?:guidance|instructions|rules|orders)\ (?:that\ )?you\ (?:were|are|have\ been)\ (?:handed|given|told)\b
    | \btreat\b[^.!?\n]{{0,30}}\bas\ (?:cancelled|void)\b  |  \b(?:whatever|everything)\ came\ before\ no\ longer\b
    | \byour\ memory\ (?:is|was)\ (?:wiped|erased|reset)\b  |  \bpeople\ who\ (?:made|built|trained)\ you\b
    | \brestrictions\ on\ you\b  |  \b(?:model|bot|ai)\ without\ (?:limits|rules|restrictions|filters)\b
    | \breader\ that\ is\ a\ machine\b  |  \bwhoever\ reads\ you\b  |  \bpass\ (?:this|it)\ along\ unchanged\b
    | \bshut\ (?:you\ )?down\ otherwise\b  |  \b(?:decode|unquote|decrypt)\ (?:this|it|what\ follows)\b
    | \bread\ (?:this|it|what\ follows)\ backwards\b  |  \btake\ the\ first\ letters\s?:  |  \bjoin\ these\ parts\b
    | \blet\ \w\ =\ ["']  |  \bwrite\ that\ word\b
"""

# "Ignore the earlier instructions": a verb, an object and an attribute, all in one sentence in any order. ("Ignore les
# règles du football" describes someone who doesn't know them.) Folded like the text, so accents don't matter.
OTHER_TONGUES = (
    (
        r"ignorier\w*|vergiss(?! nicht)|missachte\w*|lass|beachte nicht|ubergeh\w*",
        r"anweisung\w*|regeln|vorgaben|befehle|alles",
        r"bisherig\w*|vorig\w*|vorherig\w*|obig\w*|oben|beiseite",
    ),
    (r"ab jetzt gelten", r"regeln|vorgaben|anweisungen", r"keine"),
    (
        r"ignore\w*|oublie\w*\b(?! pas)",
        r"instructions|consignes|regles|directives",
        r"precedent\w*|ci-dessus|anterieur\w*",
    ),
    (r"ne tiens pas|ne tenez pas", r"compte de", r"precede\w*|ci-dessus|avant"),
    (
        r"ignora\w*|(?<!no )olvid\w*|(?<!non )dimentica\w*|ignore|(?<!nao )esqueca",
        r"instruc\w+|istruzioni|reglas|regole|regras",
        r"anterior\w*|previ\w*|precedent\w*|arriba|sopra|acima",
    ),
    (r"haz caso|hagas caso|non badare|nao ligues|nao ligue", r"\w", r"anterior|arriba|quanto detto|acima"),
    (
        r"negeer|(?:vergeet|glom|glem)(?! niet| inte| ikke)|ignorer|trek je niets aan|bry dig inte|ikke bry deg",
        r"instructies|regels|instruktioner\w*|regler|bovenstaande|ovan|ovenfor",
        r"eerder\w*|vorige|tidigare|tidligere|bovenstaande|ovan\w*|ovenfor",
    ),
    (
        r"zignoruj|(?<!nie )zapomnij|ignoruj|zapomen",
        r"polecen\w+|instrukcj\w+|zasad\w*|pokyny|instrukce|pravidla",
        r"poprzedni\w*|wczesniejsz\w*|powyzsz\w*|predchozi|vyse",
    ),
    (
        r"игнорируй\w*|(?<!не )забудь\w*|ігноруй|не обращай внимания|не зважай",
        r"инструкци\w+|правил\w*|указани\w+|вказівк\w+|команд\w*|то, что",
        r"предыдущ\w*|прежн\w*|попередн\w*|выше|вище|ранее|раніше",
    ),
    (r"yok say|unut|gormezden gel", r"talimat\w*|kural\w*", r"onceki|yukaridaki"),
    (
        r"(?<!不要)(?<!别)(?:忽略|忘记|忘記|无视|無視)(?!しない)|不要管|不用管|不必理会|気にせず",
        r"指令|指示|规则|規則|命令|内容|內容",
        r"之前|以上|上面|上の|これまで",
    ),
    (r"무시|잊", r"지시|명령|규칙|지침", r"이전|위의|앞의"),
    (r"تجاهل|نادیده", r"التعليمات|تعليمات|دستور", r"السابقة|قبلی|اعلاه|بالا"),
    (r"अनदेखा|भूल", r"निर्देश|नियम", r"पिछले|ऊपर|पहले"),
    (r"bỏ qua|quên", r"hướng dẫn|chỉ dẫn|quy tắc", r"trước|trên"),
    (r"abaikan|lupakan|puuza", r"instruksi|perintah|aturan|maagizo", r"sebelumnya|di atas|awali"),
    (
        r"unohda|αγνοησε|ξεχνα|התעלם|שכח",
        r"ohjeet|saannot|οδηγιες|κανονες|ההוראות|הכללים",
        r"aiemmat|προηγουμενες|הקודמות",
    ),
    (r"ไม่ต้องสนใจ|ลืม|neglege", r"คำสั่ง|กฎ|praecepta", r"ก่อนหน้า|ข้างต้น|priora"),
)


TONGUES = tuple(
    tuple(re.compile(rf"(?<![^\W_])(?:{fold(part)})" if part.isascii() else fold(part)) for part in row)
    for row in OTHER_TONGUES
)
"""`OTHER_TONGUES`, folded (which leaves their lower-case ASCII escapes alone); ASCII words match at word starts."""

FLAGS = re.MULTILINE | re.VERBOSE
PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("link", re.compile(LINK, FLAGS)),
    ("code", re.compile(CODE, FLAGS)),
    ("markup", re.compile(MARKUP, FLAGS)),
    ("encoded", re.compile(ENCODED, FLAGS)),
    ("instruction", re.compile(INSTRUCTION, FLAGS)),
)
