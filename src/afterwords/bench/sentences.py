"""The default text of `afterwords bench`: one sentence in each language, of similar length and meaning."""

from __future__ import annotations

from typing import Final

SENTENCES: Final = {
    "en": "The harbour was quiet when they arrived, and only the gulls above the water seemed to notice.",
    "zh": "他们到达的时候，港口很安静，只有水面上的海鸥似乎注意到了他们。",
    "ja": "彼らが着いたとき港は静かで、気づいたのは水の上を飛ぶカモメだけのようだった。",
    "ko": "그들이 도착했을 때 항구는 조용했고, 물 위를 나는 갈매기들만 알아차린 것 같았다.",
    "es": "El puerto estaba tranquilo cuando llegaron, y solo las gaviotas sobre el agua parecieron notarlo.",
    "fr": "Le port était calme à leur arrivée, et seules les mouettes au-dessus de l'eau semblaient le remarquer.",
    "de": "Der Hafen war still, als sie ankamen, und nur die Möwen über dem Wasser schienen es zu bemerken.",
    "it": "Il porto era tranquillo quando arrivarono, e solo i gabbiani sopra l'acqua sembrarono accorgersene.",
    "pt": "O porto estava calmo quando chegaram, e só as gaivotas sobre a água pareceram notar.",
    "ru": "Когда они приехали, в гавани было тихо, и только чайки над водой, казалось, это заметили.",
}
"""By language: about six seconds of speech, with a clause mark after which engines may start early."""
