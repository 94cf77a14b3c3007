// Returns how many texts and edges there are in `place`, and which of them have too little contrast. See contrast.py.
(place, [leastText, leastEdge]) => {
    const parts = (text) => {
        const found = (text.match(/-?[\d.]+(e-?\d+)?/g) || []).map(Number);
        const scaled = text.startsWith('color(srgb') ? [...found.slice(0, 3).map((each) => each * 255), ...found.slice(3)] : found;
        return scaled.length ? [...scaled.slice(0, 3), scaled[3] ?? 1] : [0, 0, 0, 0];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((each, at) => each * a + below[at] * (1 - a));
    const light = (colour) => colour.map((each) => each / 255)
        .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
        .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
    const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    // What is seen behind a node: colours of it and of what it lies in, down to one that lets nothing through.
    const ground = (node) => {
        const layers = [];
        for (; node; node = node.parentElement) {
            const colour = parts(getComputedStyle(node).backgroundColor);
            if (colour[3]) layers.push(colour);
            if (colour[3] === 1) break;
        }
        return layers.reduceRight((below, colour) => over(colour, below), [255, 255, 255]);
    };
    const opacity = (node) => { let all = 1; for (; node; node = node.parentElement) all *= Number(getComputedStyle(node).opacity); return all; };
    const seen = (node) => node.checkVisibility({visibilityProperty: true, opacityProperty: true}) && node.getClientRects().length && !node.closest(':disabled, [aria-hidden=true]');
    const named = (node) => `${node.tagName.toLowerCase()}.${node.className} “${(node.innerText || node.value || node.placeholder || '').trim().slice(0, 40)}”`;
    const faint = [];
    const text = (node, style, what) => {
        const below = ground(node), colour = parts(style.color);
        const contrast = ratio(over([...colour.slice(0, 3), colour[3] * opacity(node)], below), below);
        if (contrast < leastText) faint.push(`${what} ${named(node)}: ${contrast.toFixed(2)}`);
    };
    let count = 0;
    for (const node of [place, ...place.querySelectorAll('*')]) {
        if (!seen(node)) continue;
        const style = getComputedStyle(node), own = [...node.childNodes].some((each) => each.nodeType === 3 && each.textContent.trim());
        if (own || (node.matches('input:not([type=checkbox], [type=range]), textarea, select') && node.value)) { text(node, style, 'text'); count++; }
        if (node.matches('input, textarea') && node.placeholder && !node.value) text(node, getComputedStyle(node, '::placeholder'), 'placeholder');
        if (!node.matches('button, input:not([type=checkbox], [type=range]), textarea, select') || !parseFloat(style.borderTopWidth)) continue;
        const edge = parts(style.borderTopColor), outside = ground(node.parentElement), inside = ground(node);
        if (!edge[3]) continue; // its text alone is what is pressed
        const best = Math.max(ratio(over(edge, outside), outside), ratio(inside, outside));
        count++;
        if (best < leastEdge) faint.push(`edge ${named(node)}: ${best.toFixed(2)}`);
    }
    return [count, faint];
}
